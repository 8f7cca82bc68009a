/** When to come back. See PROTOCOL.md, "Clients". */
import type { Failure } from "./protocol.js";

const MAX_DELAY_MS = 16_000;
const JITTER = 0.25;
/** A connection that was up for so long was a good one: the count starts anew. */
const STABLE_AFTER_MS = 5_000;
/** One that ended with its token was as good as that token. */
const STABLE_WITH_TOKEN_MS = 1_000;
/** A server may ask for a pause, but not for the rest of the day. */
const MAX_RETRY_AFTER_MS = 60_000;

export class Backoff {
  /** How many attempts in a row have failed. */
  count = 0;

  constructor(
    readonly attempts: number,
    readonly random: () => number = Math.random,
  ) {}

  /** Milliseconds to wait now; undefined when the attempts are used up. */
  nextDelay({ retryAfterMs, code }: Failure, upMs: number): number | undefined {
    if (upMs >= (code === 4401 ? STABLE_WITH_TOKEN_MS : STABLE_AFTER_MS)) this.count = 0;
    if (this.count >= this.attempts) return undefined;
    const delay = Math.min(MAX_DELAY_MS, 1000 * 2 ** this.count++);
    // A server that drains spreads its clients itself: at once may be what it asks for.
    return retryAfterMs === undefined
      ? delay * (1 + JITTER * this.random())
      : Math.min(retryAfterMs, MAX_RETRY_AFTER_MS);
  }
}
