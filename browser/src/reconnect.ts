/** Delays between reconnects. See PROTOCOL.md, "Clients". */
import { TOKEN_EXPIRED, type Failure } from "./protocol.js";

const MAX_DELAY_MS = 16_000;
const JITTER = 0.25;
/** A connection that was open for this long resets the count of attempts. */
const STABLE_AFTER_MS = 5_000;
/** The same for a connection that ended because its token expired: it may have been short because the token was. */
const STABLE_WITH_TOKEN_MS = 1_000;
/** The longest delay that a server may ask for. */
const MAX_RETRY_AFTER_MS = 60_000;

/** Decides whether and when to reconnect. */
export class ReconnectPolicy {
  /** Consecutive failed attempts. */
  count = 0;

  readonly #limit: number;
  readonly #random: () => number;

  constructor(limit: number, random: () => number = Math.random) {
    this.#limit = limit;
    this.#random = random;
  }

  /** Return the milliseconds to wait before the next attempt; undefined when no attempt is left. */
  delayAfter({ retryAfterMs, code, jitter }: Failure, upMs: number): number | undefined {
    if (upMs >= (code === TOKEN_EXPIRED ? STABLE_WITH_TOKEN_MS : STABLE_AFTER_MS)) this.count = 0;
    if (this.count >= this.#limit) return undefined;
    const delay = Math.min(MAX_DELAY_MS, 1000 * 2 ** this.count++);
    // A draining server spreads the reconnects of its clients itself, so its delay gets no jitter; it may be 0.
    return retryAfterMs === undefined
      ? delay * (1 + JITTER * (jitter ?? this.#random()))
      : Math.min(retryAfterMs, MAX_RETRY_AFTER_MS);
  }
}
