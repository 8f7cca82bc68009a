/**
 * How much one caller may have of a Worker. See PROTOCOL.md, "Limits".
 *
 * Each of Cloudflare's machines counts for itself.
 */

import type { Claims } from "./auth/claims";
import { rateLimited } from "./http";
import { isLoopback, type Settings } from "./settings";

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
  waitS(caller: string, cost: number, now = Date.now()): number {
    if (this.#perS === 0) return 0;
    const known = this.#fullAt.get(caller) ?? 0;
    // It is never more than a second ahead, or the clock was set back.
    const fullAt = known > now + 1000 ? now : Math.max(known, now);
    const next = fullAt + (Math.min(cost, this.#perS) / this.#perS) * 1000;
    if (next - now > 1000) return (next - now - 1000) / 1000;
    this.#fullAt.delete(caller);
    this.#fullAt.set(caller, next);
    if (this.#fullAt.size > MAX_CALLERS) this.#fullAt.delete(this.#fullAt.keys().next().value!);
    return 0;
  }
}

/** A debt is never longer than that: a clock that was set back must not refuse anybody for longer. */
const MAX_DEBT_MS = 60_000;

/**
 * So much a second for each caller, and as much at once; what costs more than is left is a debt that is
 * paid before the next. 0 is no limit.
 */
export class Budget {
  readonly #perS: number;
  readonly #fullAt = new Map<string, number>(); // when, in ms, a caller has all of it again

  constructor(perS: number) {
    this.#perS = perS;
  }

  /** For how many seconds there is nothing left; 0: there is something. */
  waitS(caller: string, now = Date.now()): number {
    if (this.#perS === 0) return 0;
    return Math.max(0, this.#owedMs(caller, now) - 1000) / 1000;
  }

  /** Take so much, whether it is there or not. */
  charge(caller: string, cost: number, now = Date.now()): void {
    if (this.#perS === 0) return;
    const owedMs = Math.min(this.#owedMs(caller, now) + (cost / this.#perS) * 1000, MAX_DEBT_MS);
    this.#fullAt.delete(caller);
    this.#fullAt.set(caller, now + owedMs);
    if (this.#fullAt.size > MAX_CALLERS) this.#fullAt.delete(this.#fullAt.keys().next().value!);
  }

  #owedMs(caller: string, now: number): number {
    const owedMs = (this.#fullAt.get(caller) ?? 0) - now;
    return owedMs < 0 || owedMs > MAX_DEBT_MS ? 0 : owedMs;
  }
}

/** Whose rates they are; undefined: there are no keys. */
function nameOf(claims: Claims): string | undefined {
  if (claims.key !== undefined) return `key ${claims.key}`;
  if (claims.user !== undefined) return `user ${claims.user}`; // who may be called "key …"
  return claims.tokenId === undefined ? undefined : `token ${claims.tokenId}`;
}

/** Who asks: a user, a key or a token, else an address. Undefined: nobody who has a limit. */
function callerOf(claims: Claims | undefined, address: string | undefined): string | undefined {
  const name = claims === undefined ? undefined : nameOf(claims);
  return name ?? (address === undefined ? undefined : `address ${address}`);
}

/**
 * The address that Cloudflare's edge has seen. Undefined for this machine, and on workerd alone: it has
 * no limit.
 */
export function addressOf(request: Request): string | undefined {
  const address = request.headers.get("CF-Connecting-IP") ?? "";
  return address === "" || isLoopback(address) ? undefined : address;
}

/** What callers have asked for, read, and tried in vain, beside publishes. */
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
   * Count a request that is no publish, and see whether its caller may read more.
   *
   * @param claims of a credential that counts; undefined: there is none, and the address counts.
   * @throws RequestError 429.
   */
  checkRequest(claims: Claims | undefined, address: string | undefined): void {
    const caller = callerOf(claims, address);
    if (caller === undefined) return;
    const { requestsPerS, readBytesPerS } = this.#settings;
    const whose = "a second for a user, a key or an address";
    const requestWaitS = this.#requests.waitS(caller);
    if (requestWaitS > 0) throw rateLimited(`at most ${requestsPerS} requests ${whose}`, requestWaitS);
    this.#requests.charge(caller, 1);
    const readWaitS = this.#read.waitS(caller);
    if (readWaitS > 0) throw rateLimited(`at most ${readBytesPerS} bytes read ${whose}`, readWaitS);
  }

  /** Bytes that are being answered. They may be more than are left: then the next request waits. */
  countRead(claims: Claims, address: string | undefined, bytes: number): void {
    const caller = callerOf(claims, address);
    if (caller !== undefined) this.#read.charge(caller, bytes);
  }

  /**
   * See whether an address may try a token: to verify one takes longer than anything else that a
   * stranger can ask for.
   *
   * @throws RequestError 429.
   */
  checkAttempt(address: string | undefined): void {
    const waitS = address === undefined ? 0 : this.#attempts.waitS(address);
    if (waitS === 0) return;
    const most = this.#settings.requestsPerS;
    throw rateLimited(`at most ${most} failed attempts a second for an address`, waitS);
  }

  /** A token of this address did not count. */
  countFailedAttempt(address: string | undefined): void {
    if (address !== undefined) this.#attempts.charge(address, 1);
  }

  /**
   * See whether a publisher had too many requests refused. What is published has limits of its own.
   *
   * @throws RequestError 429.
   */
  checkPublisher(claims: Claims): void {
    const caller = nameOf(claims);
    const waitS = caller === undefined ? 0 : this.#requests.waitS(caller);
    if (waitS === 0) return;
    const most = this.#settings.requestsPerS;
    throw rateLimited(`at most ${most} refused requests a second for a user or a key`, waitS);
  }

  /** A request with a credential was refused: to find that out took its time. */
  countRefusal(claims: Claims, address: string | undefined): void {
    const caller = callerOf(claims, address);
    if (caller !== undefined) this.#requests.charge(caller, 1);
  }
}

const known = new WeakMap<Settings, RequestLimits>();

/** What is counted on this machine. */
export function requestLimitsOf(settings: Settings): RequestLimits {
  let limits = known.get(settings);
  if (limits === undefined) known.set(settings, (limits = new RequestLimits(settings)));
  return limits;
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
    const caller = nameOf(claims);
    if (caller === undefined) return;
    const { publishesPerS, publishBytesPerS } = this.#settings;
    for (const [rate, cost, most, what] of [
      [this.#publishes, count, publishesPerS, "notifications"],
      [this.#bytes, bytes, publishBytesPerS, "bytes"],
    ] as const) {
      const waitS = rate.waitS(caller, cost);
      if (waitS > 0) throw rateLimited(`at most ${most} ${what} a second for a key`, waitS);
    }
  }
}
