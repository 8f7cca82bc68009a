/**
 * How much one caller may have of a Worker. See PROTOCOL.md, "Limits".
 *
 * Each of Cloudflare's machines counts for itself.
 */

import type { Claims } from "./auth/claims";
import { tooMany } from "./http";
import type { Settings } from "./settings";

/** So many are counted at once, for each rate; the one that is silent for longest goes first. */
const MAX_CALLERS = 10_000;

/** So many a second for each caller, and as many at once (GCRA). 0 is no limit. */
export class Rate {
  readonly #perS: number;
  readonly #fullAt = new Map<string, number>(); // when, in ms, a caller has all of it again

  constructor(perS: number) {
    this.#perS = perS;
  }

  /** Take so many; 0, or for how many seconds to wait because they are too many. */
  waitS(who: string, cost: number, now = Date.now()): number {
    if (this.#perS === 0) return 0;
    const known = this.#fullAt.get(who) ?? 0;
    // It is never more than a second ahead, or the clock was set back.
    const fullAt = known > now + 1000 ? now : Math.max(known, now);
    const next = fullAt + (Math.min(cost, this.#perS) / this.#perS) * 1000;
    if (next - now > 1000) return (next - now - 1000) / 1000;
    this.#fullAt.delete(who);
    this.#fullAt.set(who, next);
    if (this.#fullAt.size > MAX_CALLERS) this.#fullAt.delete(this.#fullAt.keys().next().value!);
    return 0;
  }
}

/** Whose rates they are; undefined: there are no keys. */
function nameOf(claims: Claims): string | undefined {
  if (claims.key !== undefined) return `key ${claims.key}`;
  if (claims.user !== undefined) return `user ${claims.user}`; // who may be called "key …"
  return claims.tokenId === undefined ? undefined : `token ${claims.tokenId}`;
}

const requests = new WeakMap<Settings, Rate>();

/**
 * Count a request that is no publish.
 *
 * @throws RequestError 429.
 */
export function checkRequest(settings: Settings, claims: Claims): void {
  const who = nameOf(claims);
  if (who === undefined) return;
  let rate = requests.get(settings);
  if (rate === undefined) requests.set(settings, (rate = new Rate(settings.requestsPerS)));
  const waitS = rate.waitS(who, 1);
  if (waitS > 0) {
    throw tooMany(`at most ${settings.requestsPerS} requests a second for a user or a key`, waitS);
  }
}

/** What keys and tokens publish. */
export class PublishLimits {
  readonly #settings: Settings;
  readonly #publishes: Rate;
  readonly #bytes: Rate;

  constructor(settings: Settings) {
    this.#settings = settings;
    this.#publishes = new Rate(settings.publishesPerS);
    this.#bytes = new Rate(settings.publishBytesPerS);
  }

  /**
   * Count notifications and their bytes, each once for each of its rooms. Without keys there is no
   * limit.
   *
   * @throws RequestError 429.
   */
  check(claims: Claims, count: number, bytes: number): void {
    const who = nameOf(claims);
    if (who === undefined) return;
    const { publishesPerS, publishBytesPerS } = this.#settings;
    for (const [rate, cost, most, what] of [
      [this.#publishes, count, publishesPerS, "notifications"],
      [this.#bytes, bytes, publishBytesPerS, "bytes"],
    ] as const) {
      const waitS = rate.waitS(who, cost);
      if (waitS > 0) throw tooMany(`at most ${most} ${what} a second for a key`, waitS);
    }
  }
}
