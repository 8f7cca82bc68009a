/** The token of a connection or a room: it is fetched for each connection, and renewed before it expires. */
import { isToken, type SubscribeOptions } from "./options.js";
import type { Failure } from "./protocol.js";
import { createTimer } from "./timer.js";

type Source = Pick<SubscribeOptions, "token">;

/** The bounds of the interval between renewals on one connection; between them, half of the remaining lifetime. */
const MIN_REFRESH_MS = 1_000;
const MAX_REFRESH_MS = 10_000;
/** An attempt to connect fails if the token, or the stored cursor, takes longer. */
const WITHIN_MS = 10_000;

/** The calls of the present task: the subscriptions of a page that begin together share one. */
const calls = new Map<unknown, Promise<unknown>>();

/** Return the current token. */
export async function fetchToken({ token }: Source): Promise<string | undefined> {
  let found: unknown = token;
  if (typeof token === "function") {
    let call = calls.get(token);
    if (!call) {
      calls.set(token, (call = (async () => token())()));
      queueMicrotask(() => calls.delete(token));
    }
    found = await call;
  }
  if ((found ?? "") === "") return undefined;
  if (isToken(found)) return found;
  const given = typeof found;
  throw new Error(`token() returned ${given === "string" ? "text that is no token" : given}`);
}

/** Wait for a part of an attempt to connect. The work never rejects. */
export const bounded = <T>(work: T | Promise<T>): Promise<T | Failure> => {
  const timer = createTimer();
  return new Promise<T | Failure>((resolve) => {
    timer.start(WITHIN_MS, () => resolve({ reason: "token() timed out" }));
    void Promise.resolve(work).then(resolve);
  }).finally(timer.stop);
};

/** Fetch the token for an attempt to connect. */
export const findToken = (options: Source): Promise<{ token?: string | undefined; reason?: string }> =>
  bounded(
    fetchToken(options).then(
      (token) => ({ token }),
      (error: Partial<Error> | undefined) => ({ reason: `no token: ${error?.message ?? error}` }),
    ),
  );

/** @param authenticate sends the new token to the server; undefined: there is none. */
export function createRenewal(options: Source, authenticate: (token?: string, room?: string) => void) {
  const timer = createTimer();
  let warnedOf = 0; // the expiry time in the last warning of the server
  let renewedAt = 0; // on this connection
  let renewal: object | undefined; // the one that is scheduled or running

  const renew = (room?: string) => {
    const current = renewal;
    renewedAt = Date.now();
    const done = (token?: string) => {
      if (current !== renewal) return;
      renewal = undefined;
      authenticate(token, room);
    };
    // Without a new token the connection ends when the old one expires, and the next attempt asks again.
    fetchToken(options).then(done, () => done());
  };

  return {
    /**
     * Renew the token, once for each warning. A token that is not newer causes no further warning. Otherwise a
     * function that caches its tokens, or whose tokens live shorter than the warning period, would be called in an
     * endless loop.
     *
     * @param ends when the token expires; NaN if the server does not report it.
     * @param room whose own token it is.
     */
    start: (ends: number, room?: string) => {
      if (renewal || ends <= warnedOf) return;
      warnedOf = ends || warnedOf;
      renewal = {};
      const pauseMs = Math.max(MIN_REFRESH_MS, Math.min(MAX_REFRESH_MS, (ends - Date.now()) / 2 || 0));
      const waitMs = renewedAt && renewedAt + pauseMs - Date.now();
      if (waitMs > 0) timer.start(waitMs, () => renew(room));
      else renew(room);
    },
    /** The connection has ended. */
    stop: () => {
      timer.stop();
      renewedAt = 0;
      renewal = undefined;
    },
  };
}
