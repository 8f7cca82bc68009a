/** Reading the state of jobs. See PROTOCOL.md, "Job state". */
import { baseOf, type SubscribeOptions } from "../options.js";
import { isFinalStatus } from "../protocol.js";
import { createTimer } from "../timer.js";
import { fetchToken } from "../token.js";

/** A job is followed without its snapshot if that does not come within this time. */
const ANSWER_WITHIN_MS = 5_000;

/** @throws Error with the HTTP `status`, if there is one. */
async function get(path: string, options: SubscribeOptions, signal: AbortSignal) {
  const token = await fetchToken(options);
  const response = await fetch(baseOf(options.url) + path, {
    headers: token ? { Authorization: `Bearer ${token}` } : {},
    cache: "no-store",
    redirect: "error", // a redirect could send the token to another host
    signal,
  });
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.details), { status: response.status });
  return answer;
}

/**
 * Read a snapshot until the server answers.
 *
 * @param onError returns whether to try again, unless that cannot help.
 */
export function createSnapshot<Answer>(
  path: string, latest: { readonly current: SubscribeOptions }, onAnswer: (answer: Answer) => void, onError: (error: Error) => unknown,
) {
  const timer = createTimer();
  let request: AbortController | undefined;
  let failures = 0;
  const stop = () => {
    request?.abort();
    request = undefined;
    timer.stop();
  };
  /** Read it now. */
  const read = () => {
    stop();
    const mine = (request = new AbortController());
    const once = <Value>(then: (value: Value) => void) => (value: Value) => {
      if (request !== mine) return;
      stop();
      then(value);
    };
    const fail = once((error: Error & { status?: number }) => {
      if (onError(error) && !isFinalStatus(error.status ?? 0)) timer.start(Math.min(16_000, 1000 * 2 ** failures++), read);
    });
    timer.start(ANSWER_WITHIN_MS, () => fail(new Error("no answer")));
    const succeed = once((answer: Answer) => {
      failures = 0;
      onAnswer(answer);
    });
    get(path, latest.current, mine.signal).then(succeed, fail);
  };
  return {
    read,
    /** Read it after the present task: several reasons are one request. */
    readSoon: () => timer.start(0, read),
    stop,
    isReading: () => !!request,
  };
}
