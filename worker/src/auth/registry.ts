/**
 * The connections of a user or a token: one Durable Object for each. See PROTOCOL.md, "Revoking".
 *
 * It stores the rooms of the connections, so that a revocation can find them, and so that the connections of a user
 * can be counted over all rooms. It is called for tokens only, never for API keys, so a publish needs no additional
 * hop.
 */

import { DurableObject } from "cloudflare:workers";

import { AgeCheck } from "../stores/ages";
import type { Claims } from "./claims";
import type { Principal, Revocation } from "./revocations";
import { revocationRetentionMs } from "./tokens";
import { settingsOf } from "../settings";

/** The interval between checks for stale connections, which remain when a room fails without unregistering them. */
const CHECK_INTERVAL_MS = 24 * 3600 * 1000;
const CONNECTION = "connection "; // prefix of the storage key of a connection; followed by its id
const CHECKED = "checked";
const REVOKED = "revoked"; // storage key of the last revocation

export type Verdict = "ok" | "revoked" | "rate_limited";

export function registryOf(env: Env, of: "user" | "token", name: string): DurableObjectStub<ConnectionRegistry> {
  return env.CONNECTION_REGISTRY.get(env.CONNECTION_REGISTRY.idFromName(`${of}:${name}`));
}

/** Return the registries of the user and of the token; none for a key, and without keys. */
export function registriesOf(env: Env, { user, tokenId }: Principal): DurableObjectStub<ConnectionRegistry>[] {
  return [
    ...(user === undefined ? [] : [registryOf(env, "user", user)]),
    ...(tokenId === undefined ? [] : [registryOf(env, "token", tokenId)]),
  ];
}

/**
 * Register a connection with its user and its token.
 *
 * @param id of the connection.
 * @param limit the connection limit of the user; 0 is no limit.
 */
export async function registerConnection(
  env: Env,
  claims: Claims,
  id: string,
  room: string,
  limit: number,
): Promise<Verdict> {
  const { user, tokenId, issuedAt } = claims;
  const verdicts = await Promise.all([
    ...(user === undefined ? [] : [registryOf(env, "user", user).register(id, room, issuedAt, limit)]),
    ...(tokenId === undefined ? [] : [registryOf(env, "token", tokenId).register(id, room, issuedAt, 0)]),
  ]);
  return verdicts.find((verdict) => verdict !== "ok") ?? "ok";
}

/** The registry of one user or one token. It uses keys instead of tables, whose rows are billed, too. */
export class ConnectionRegistry extends DurableObject<Env> {
  readonly #kv: SyncKvStorage;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#kv = ctx.storage.kv;
  }

  /** Register a connection. A `limit` of 0 is no limit. */
  async register(id: string, room: string, issuedAt: number | undefined, limit: number): Promise<Verdict> {
    if (limit > 0 && this.#connections().size >= limit) {
      await this.#removeStale();
      if (this.#connections().size >= limit) return this.isRevoked(issuedAt) ? "revoked" : "rate_limited";
    }
    // Checked last, so that nothing can happen between the check and the write.
    if (this.isRevoked(issuedAt)) return "revoked";
    this.#kv.put(CONNECTION + id, room);
    if ((await this.ctx.storage.getAlarm()) === null) {
      await this.ctx.storage.setAlarm(Date.now() + CHECK_INTERVAL_MS);
    }
    return "ok";
  }

  /** Remove connections that have ended, or were never opened. */
  async unregister(ids: string[]): Promise<void> {
    for (const id of ids) this.#kv.delete(CONNECTION + id);
    await this.#deleteIfEmpty();
  }

  /** Whether a token issued at this time (seconds since 1970) is revoked. */
  isRevoked(issuedAt: number | undefined): boolean {
    const revocation = this.#kv.get<Revocation>(REVOKED);
    if (revocation === undefined) return false;
    return revocation.kind === "token" || (issuedAt ?? 0) <= revocation.at;
  }

  /** Revoke the tokens, and return how many connections were closed. */
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
   * Check that the storage works, for `/ready`.
   *
   * @param writes also write to it, and wait until the write is durable.
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

  /** Remove the connections that their rooms no longer have. Those of unreachable rooms are kept. */
  async #removeStale(): Promise<void> {
    const known = new Map<string, string[]>(); // ids by room, without those that are registered meanwhile
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

  /** Return the rooms of the connections, by connection id. */
  #connections(): Map<string, string> {
    const kept = this.#kv.list<string>({ prefix: CONNECTION });
    return new Map([...kept].map(([key, room]) => [key.slice(CONNECTION.length), room]));
  }

  /** Delete the storage if nothing is registered or revoked, to save its costs. Return whether it was deleted. */
  async #deleteIfEmpty(): Promise<boolean> {
    if (this.#kv.get(REVOKED) !== undefined || this.#connections().size > 0) return false;
    await this.ctx.storage.deleteAll(); // the alarm, too
    return true;
  }
}
