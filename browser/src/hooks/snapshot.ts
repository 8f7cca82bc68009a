/** Reading the state of jobs. See PROTOCOL.md, "Job state". */
import { baseOf, type SubscribeOptions } from "../options.js";
import { fetchToken } from "../token.js";

/** A job is followed without its snapshot if that does not come within this time. */
const ANSWER_WITHIN_MS = 5_000;

/** @throws Error with the HTTP `status`, if there is one. */
export async function readSnapshot<Answer>(path: string, options: SubscribeOptions): Promise<Answer> {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), ANSWER_WITHIN_MS);
  try {
    const token = await fetchToken(options);
    const response = await fetch(baseOf(options.url) + path, {
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      cache: "no-store",
      redirect: "error", // a redirect could send the token to another host
      signal: stop.signal,
    });
    const answer = (await response.json()) as Answer & { details?: string };
    if (!response.ok) throw Object.assign(new Error(answer.details), { status: response.status });
    return answer;
  } finally {
    clearTimeout(timer);
  }
}
