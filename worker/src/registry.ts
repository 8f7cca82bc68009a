/**
 * Who holds connections, a user or a token: an object for each. See PROTOCOL.md, "Revoking".
 *
 * It knows in which rooms they are, so that revoking finds them without asking every room of the
 * world, and so that a user's connections can be counted over rooms. It is asked when a token comes,
 * never for a publisher's key: a publish has no hop more.
 */

import { DurableObject } from "cloudflare:workers";

import { AgeCheck } from "./age";
import type { Claims } from "./auth/claims";
import { revocationRetentionMs } from "./auth/verify";
import { settingsOf, type Env } from "./settings";

/** So often does a holder ask whether its connections are still there: a room that fell over tells nobody. */
const CHECK_INTERVAL_MS = 24 * 3600 * 1000;
const CONNECTION = "connection "; // and its id: the key under which its room is kept
const CHECKED = "checked";
const REVOKED = "revoked"; // the key of the last revocation

export type Verdict = "ok" | "revoked" | "rate_limited";

/** A user's tokens whose `iat` is until `at` (seconds since 1970), or one token. */
export interface Revocation {
  kind: "user" | "token";
  subject: string;
  at: number;
}

/** Whether a revocation means these claims. */
export function matches(revocation: Revocation, claims: Principal & { issuedAt?: number }): boolean {
  if (revocation.kind === "token") return claims.tokenId === revocation.subject;
  return claims.user === revocation.subject && (claims.issuedAt ?? 0) <= revocation.at;
}

export interface Principal {
  user?: string;
  tokenId?: string;
}

export function registryOf(env: Env, of: "user" | "token", name: string): DurableObjectStub<ConnectionRegistry> {
  return env.CONNECTION_REGISTRY.get(env.CONNECTION_REGISTRY.idFromName(`${of}:${name}`));
}

/** The user's and the token's; none for a key, and without keys. */
export function registriesOf(env: Env, { user, tokenId }: Principal): DurableObjectStub<ConnectionRegistry>[] {
  return [
    ...(user === undefined ? [] : [registryOf(env, "user", user)]),
    ...(tokenId === undefined ? [] : [registryOf(env, "token", tokenId)]),
  ];
}

/**
 * Hold a place for a connection, with everyone who holds it.
 *
 * @param id the connection's.
 * @param most connections that a user may have; 0 is no limit.
 */
export async function registerConnection(
  env: Env,
  claims: Claims,
  id: string,
  room: string,
  most: number,
): Promise<Verdict> {
  const { user, tokenId, issuedAt } = claims;
  const verdicts = await Promise.all([
    ...(user === undefined ? [] : [registryOf(env, "user", user).register(id, room, issuedAt, most)]),
    ...(tokenId === undefined ? [] : [registryOf(env, "token", tokenId).register(id, room, issuedAt, 0)]),
  ]);
  return verdicts.find((verdict) => verdict !== "ok") ?? "ok";
}

/** One user, or one token. What it keeps are keys, not tables: those have rows of their own to pay. */
export class ConnectionRegistry extends DurableObject<Env> {
  readonly #kv: SyncKvStorage;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#kv = ctx.storage.kv;
  }

  /** Hold a place; `most` of 0 is no limit. */
  async register(id: string, room: string, issuedAt: number | undefined, most: number): Promise<Verdict> {
    if (most > 0 && this.#connections().size >= most) {
      await this.#removeStale();
      if (this.#connections().size >= most) return this.isRevoked(issuedAt) ? "revoked" : "rate_limited";
    }
    if (this.isRevoked(issuedAt)) return "revoked"; // asked last: nothing can come between it and the place
    this.#kv.put(CONNECTION + id, room);
    if ((await this.ctx.storage.getAlarm()) === null) {
      await this.ctx.storage.setAlarm(Date.now() + CHECK_INTERVAL_MS);
    }
    return "ok";
  }

  /** Connections that have ended, or never began. */
  async unregister(ids: string[]): Promise<void> {
    for (const id of ids) this.#kv.delete(CONNECTION + id);
    await this.#deleteIfEmpty();
  }

  /** Whether a token that was issued then (seconds since 1970) counts no more. */
  isRevoked(issuedAt: number | undefined): boolean {
    const revocation = this.#kv.get<Revocation>(REVOKED);
    if (revocation === undefined) return false;
    return revocation.kind === "token" || (issuedAt ?? 0) <= revocation.at;
  }

  /** Take the tokens back, or the token; returns how many connections that closed. */
  async revoke(revocation: Revocation): Promise<number> {
    const before = this.#kv.get<Revocation>(REVOKED);
    if (before === undefined || before.at <= revocation.at) this.#kv.put(REVOKED, revocation);
    await this.ctx.storage.setAlarm(Date.now() + CHECK_INTERVAL_MS);
    const rooms = new Set(this.#connections().values());
    const closed = await Promise.all(
      [...rooms].map((room) => this.#roomOf(room).closeRevoked(revocation)),
    );
    return closed.reduce((sum, count) => sum + count, 0);
  }

  /**
   * Whether an object's storage can be had, for `/ready`.
   *
   * @param writes whether to write to it, too: the answer waits until that is kept.
   */
  async check(writes: boolean): Promise<void> {
    this.#kv.get(CHECKED);
    if (!writes) return;
    this.#kv.put(CHECKED, true);
    await this.ctx.storage.sync();
    this.#kv.delete(CHECKED);
  }

  override async alarm(): Promise<void> {
    const revocation = this.#kv.get<Revocation>(REVOKED);
    const endsAt = (revocation?.at ?? 0) * 1000 + revocationRetentionMs(settingsOf(this.env));
    const ages = new AgeCheck(this.#kv);
    const foundAt = ages.confirm((now) => revocation !== undefined && endsAt <= now);
    if (foundAt !== undefined && endsAt <= foundAt) this.#kv.delete(REVOKED);
    await this.#removeStale();
    if (await this.#deleteIfEmpty()) return;
    const lookAt = this.#connections().size > 0 ? Date.now() + CHECK_INTERVAL_MS : Math.max(endsAt, Date.now());
    await this.ctx.storage.setAlarm(Math.min(lookAt, ages.dueAt ?? Infinity));
  }

  /** Ask the rooms who is there. Of one that cannot be asked now, nobody is forgotten. */
  async #removeStale(): Promise<void> {
    const known = new Map<string, string[]>(); // ids by room; who comes meanwhile is not among them
    for (const [id, room] of this.#connections()) known.set(room, [...(known.get(room) ?? []), id]);
    await Promise.allSettled(
      [...known].map(async ([room, ids]) => {
        const there = new Set(await this.#roomOf(room).connectionIds());
        for (const id of ids) if (!there.has(id)) this.#kv.delete(CONNECTION + id);
      }),
    );
  }

  #roomOf(room: string) {
    return this.env.NOTIFICATION_ROOM.get(this.env.NOTIFICATION_ROOM.idFromName(room));
  }

  /** The rooms of the connections, by their ids. */
  #connections(): Map<string, string> {
    const kept = this.#kv.list<string>({ prefix: CONNECTION });
    return new Map([...kept].map(([key, room]) => [key.slice(CONNECTION.length), room]));
  }

  /** An object that holds nothing costs nothing. Returns whether it is one. */
  async #deleteIfEmpty(): Promise<boolean> {
    if (this.#kv.get(REVOKED) !== undefined || this.#connections().size > 0) return false;
    await this.ctx.storage.deleteAll(); // the alarm, too
    return true;
  }
}
