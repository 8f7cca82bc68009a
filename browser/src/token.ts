/** The token of a subscription: it is fetched for each connection, and renewed before it expires. */
import { isToken, type SubscribeOptions } from "./options.js";
import { createTimer } from "./timer.js";

/** The bounds of the interval between renewals on one connection; between them, half of the remaining lifetime. */
const MIN_REFRESH_MS = 1_000;
const MAX_REFRESH_MS = 10_000;

/** Return the current token. */
export async function fetchToken({ token }: Pick<SubscribeOptions, "token">): Promise<string | undefined> {
  const found: unknown = await (typeof token === "function" ? token() : token);
  if ((found ?? "") === "") return undefined;
  if (isToken(found)) return found;
  const given = typeof found;
  throw new Error(`token() returned ${given === "string" ? "text that is not a token; is it an error page?" : given}`);
}

/** @param authenticate sends the new token to the server; undefined: there is none. */
export function createRenewal(options: Pick<SubscribeOptions, "token">, authenticate: (token?: string) => void) {
  const timer = createTimer();
  let warnedOf = 0; // the expiry time in the last warning of the server
  let renewedAt = 0; // on this connection
  let renewal: object | undefined; // the one that is scheduled or running

  const renew = () => {
    const current = renewal;
    renewedAt = Date.now();
    const done = (token?: string) => {
      if (current !== renewal) return;
      renewal = undefined;
      authenticate(token);
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
     */
    start: (ends: number) => {
      if (renewal || ends <= warnedOf) return;
      warnedOf = ends || warnedOf;
      renewal = {};
      const pauseMs = Math.max(MIN_REFRESH_MS, Math.min(MAX_REFRESH_MS, (ends - Date.now()) / 2 || 0));
      const waitMs = renewedAt && renewedAt + pauseMs - Date.now();
      if (waitMs > 0) timer.start(waitMs, renew);
      else renew();
    },
    /** The connection has ended. */
    stop: () => {
      timer.stop();
      renewedAt = 0;
      renewal = undefined;
    },
  };
}
