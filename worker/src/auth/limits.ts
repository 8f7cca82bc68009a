/**
 * Rate limits for each caller. See PROTOCOL.md, "Limits".
 *
 * The counts are local to each of Cloudflare's machines.
 */

import type { Claims } from "./claims";
import { memoize } from "../memoize";
import { rateLimited } from "../messages";
import { isLoopback, type Settings } from "../settings";

/** Callers that one rate counts; the one that was idle for longest is evicted first. */
const MAX_CALLERS = 10_000;

/** When, in ms since 1970, each caller has all of its rate again. */
class FullTimes {
  readonly #times = new Map<string, number>();

  get(caller: string): number {
    return this.#times.get(caller) ?? 0;
  }

  set(caller: string, at: number): void {
    this.#times.delete(caller);
    this.#times.set(caller, at);
    if (this.#times.size > MAX_CALLERS) this.#times.delete(this.#times.keys().next().value!);
  }
}

/** A rate limit per second for each caller, with a burst of one second (GCRA). 0 is no limit. */
export class Rate {
  readonly #fullAt = new FullTimes();

  constructor(private readonly perS: number) {}

  /** Consume the cost and return 0, or return the seconds to wait. */
  waitS(caller: string, cost: number, now = Date.now()): number {
    if (this.perS === 0) return 0;
    const known = this.#fullAt.get(caller);
    // More than a second ahead means that the clock was set back.
    const fullAt = known > now + 1000 ? now : Math.max(known, now);
    const next = fullAt + (Math.min(cost, this.perS) / this.perS) * 1000;
    if (next - now > 1000) return (next - now - 1000) / 1000;
    this.#fullAt.set(caller, next);
    return 0;
  }
}

/** The longest debt, also after the clock was set back. */
const MAX_DEBT_MS = 60_000;

/**
 * A budget per second for each caller, with a burst of one second. A cost above the remaining budget becomes a
 * debt that delays the next request. 0 is no limit.
 */
export class Budget {
  readonly #fullAt = new FullTimes();

  constructor(private readonly perS: number) {}

  /** Return the seconds until there is budget; 0 if there is some. */
  waitS(caller: string, now = Date.now()): number {
    if (this.perS === 0) return 0;
    return Math.max(0, this.#owedMs(caller, now) - 1000) / 1000;
  }

  /** Consume the cost, even beyond the budget. */
  charge(caller: string, cost: number, now = Date.now()): void {
    if (this.perS === 0) return;
    const owedMs = Math.min(this.#owedMs(caller, now) + (cost / this.perS) * 1000, MAX_DEBT_MS);
    this.#fullAt.set(caller, now + owedMs);
  }

  #owedMs(caller: string, now: number): number {
    const owedMs = (this.#fullAt.get(caller)) - now;
    return owedMs < 0 || owedMs > MAX_DEBT_MS ? 0 : owedMs;
  }
}

/** Return the key under which a caller is counted; undefined without keys. */
function nameOf(claims: Claims): string | undefined {
  if (claims.key !== undefined) return `key ${claims.key}`;
  if (claims.user !== undefined) return `user ${claims.user}`; // prefixed, because a user id may be "key …"
  return claims.tokenId === undefined ? undefined : `token ${claims.tokenId}`;
}

/** Return the caller: a user, a key or a token, else an address. Undefined: no limit applies. */
function callerOf(claims: Claims | undefined, address: string | undefined): string | undefined {
  const name = claims === undefined ? undefined : nameOf(claims);
  return name ?? (address === undefined ? undefined : `address ${address}`);
}

/**
 * Return the client's address, as reported by Cloudflare's edge. Undefined, and so without limits, for loopback
 * addresses and in workerd without the edge.
 */
export function addressOf(request: Request): string | undefined {
  const address = request.headers.get("CF-Connecting-IP") ?? "";
  return address === "" || isLoopback(address) ? undefined : address;
}

/** Limits of requests, bytes read and failed authentication. Publishes have limits of their own. */
export class RequestLimits {
  readonly #settings: Settings;
  readonly #requests: Budget;
  readonly #attempts: Budget;
  readonly #read: Budget;

  constructor(settings: Settings) {
    this.#settings = settings;
    this.#requests = new Budget(settings.requestsPerS);
    this.#attempts = new Budget(settings.requestsPerS);
    this.#read = new Budget(settings.readBytesPerS);
  }

  /**
   * Count a request that is not a publish, and check that its caller has budget left for reading.
   *
   * @param claims of a valid credential; undefined without one: the address is counted.
   * @throws RequestError 429.
   */
  checkRequest(claims: Claims | undefined, address: string | undefined): void {
    const caller = callerOf(claims, address);
    if (caller === undefined) return;
    const { requestsPerS, readBytesPerS } = this.#settings;
    const per = "per user, key or address";
    const requestWaitS = this.#requests.waitS(caller);
    if (requestWaitS > 0) throw rateLimited(`rate limit exceeded: ${requestsPerS} requests/s ${per}`, requestWaitS);
    this.#requests.charge(caller, 1);
    const readWaitS = this.#read.waitS(caller);
    if (readWaitS > 0) throw rateLimited(`rate limit exceeded: ${readBytesPerS} read bytes/s ${per}`, readWaitS);
  }

  /** Count the bytes of a response. If they exceed the budget, the next request is delayed. */
  countRead(claims: Claims, address: string | undefined, bytes: number): void {
    const caller = callerOf(claims, address);
    if (caller !== undefined) this.#read.charge(caller, bytes);
  }

  /**
   * Check that an address may try another token. Verification is the most expensive operation that an
   * unauthenticated client can cause.
   *
   * @throws RequestError 429.
   */
  checkAttempt(address: string | undefined): void {
    const waitS = address === undefined ? 0 : this.#attempts.waitS(address);
    if (waitS === 0) return;
    const limit = this.#settings.requestsPerS;
    throw rateLimited(`rate limit exceeded: ${limit} failed attempts/s per address`, waitS);
  }

  /** Count an invalid token of an address. */
  countFailedAttempt(address: string | undefined): void {
    if (address !== undefined) this.#attempts.charge(address, 1);
  }

  /**
   * Check that not too many requests of a publisher were rejected. Publishes have limits of their own.
   *
   * @throws RequestError 429.
   */
  checkPublisher(claims: Claims): void {
    const caller = nameOf(claims);
    const waitS = caller === undefined ? 0 : this.#requests.waitS(caller);
    if (waitS === 0) return;
    const limit = this.#settings.requestsPerS;
    throw rateLimited(`rate limit exceeded: ${limit} rejected requests/s per user or key`, waitS);
  }

  /** Count a rejected request with a valid credential, because processing it had a cost, too. */
  countRefusal(claims: Claims, address: string | undefined): void {
    const caller = callerOf(claims, address);
    if (caller !== undefined) this.#requests.charge(caller, 1);
  }
}

/** Return the request limits of the settings, on this machine. */
export const requestLimitsOf = memoize((settings: Settings) => new RequestLimits(settings));

/** Limits of publishes, for each key and token. */
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
   * Count notifications and their bytes, once for each of their rooms. Without keys there is no limit.
   *
   * @throws RequestError 429.
   */
  check(claims: Claims, count: number, bytes: number): void {
    const caller = nameOf(claims);
    if (caller === undefined) return;
    const { publishesPerS, publishBytesPerS } = this.#settings;
    for (const [rate, cost, limit, what] of [
      [this.#publishes, count, publishesPerS, "notifications"],
      [this.#bytes, bytes, publishBytesPerS, "bytes"],
    ] as const) {
      const waitS = rate.waitS(caller, cost);
      if (waitS > 0) throw rateLimited(`rate limit exceeded: ${limit} ${what}/s per key`, waitS);
    }
  }
}

/** Return the publish limits of the settings, on this machine. */
export const publishLimitsOf = memoize((settings: Settings) => new PublishLimits(settings));
