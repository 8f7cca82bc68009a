/**
 * Who holds connections, a user or a token: an object for each. See PROTOCOL.md, "Revoking".
 *
 * It knows in which rooms they are, so that revoking finds them without asking every room of the
 * world, and so that a user's connections can be counted over rooms. It is asked when a token comes,
 * never for a publisher's key: a publish has no hop more.
 */

import { DurableObject } from "cloudflare:workers";

import type { Claims } from "./auth/claims";
import type { Env } from "./settings";

/** As long as a token that was revoked is remembered: it should live shorter. */
const REMEMBERED_MS = 24 * 3600 * 1000;

export type Verdict = "ok" | "revoked" | "too_many";

/** A user's tokens that were issued until `at` (seconds since 1970), or one token. */
export interface Revocation {
  of: "user" | "token";
  name: string;
  at: number;
}

/** Whether a revocation means these claims. */
export function covers(revocation: Revocation, claims: HeldBy & { issuedAt?: number }): boolean {
  if (revocation.of === "token") return claims.tokenId === revocation.name;
  return claims.user === revocation.name && (claims.issuedAt ?? 0) <= revocation.at;
}

export interface HeldBy {
  user?: string;
  tokenId?: string;
}

export function holderOf(env: Env, of: "user" | "token", name: string): DurableObjectStub<Holder> {
  return env.HOLDER.get(env.HOLDER.idFromName(`${of}:${name}`));
}

/** The user's and the token's; none for a key, and without keys. */
export function holdersOf(env: Env, { user, tokenId }: HeldBy): DurableObjectStub<Holder>[] {
  return [
    ...(user === undefined ? [] : [holderOf(env, "user", user)]),
    ...(tokenId === undefined ? [] : [holderOf(env, "token", tokenId)]),
  ];
}

/**
 * Hold a place for a connection, with everyone who holds it.
 *
 * @param id the connection's.
 * @param most connections that a user may have; 0 is no limit.
 */
export async function openConnection(
  env: Env,
  claims: Claims,
  id: string,
  room: string,
  most: number,
): Promise<Verdict> {
  const { user, tokenId, issuedAt } = claims;
  const verdicts = await Promise.all([
    ...(user === undefined ? [] : [holderOf(env, "user", user).open(id, room, issuedAt, most)]),
    ...(tokenId === undefined ? [] : [holderOf(env, "token", tokenId).open(id, room, issuedAt, 0)]),
  ]);
  return verdicts.find((verdict) => verdict !== "ok") ?? "ok";
}

/** One user, or one token. */
export class Holder extends DurableObject<Env> {
  readonly #sql: SqlStorage;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#sql = ctx.storage.sql;
  }

  /** Hold a place; `most` of 0 is no limit. */
  async open(id: string, room: string, issuedAt: number | undefined, most: number): Promise<Verdict> {
    if (this.covers(issuedAt)) return "revoked";
    this.#make();
    if (most > 0 && this.#count() >= most) {
      await this.#forgetGone(); // a room that fell over has told nobody
      if (this.#count() >= most) return "too_many";
    }
    this.#sql.exec("INSERT OR REPLACE INTO connections (id, room) VALUES (?, ?)", id, room);
    return "ok";
  }

  /** Connections that have ended, or never began. */
  async left(ids: string[]): Promise<void> {
    if (!this.#isMade()) return;
    for (const id of ids) this.#sql.exec("DELETE FROM connections WHERE id = ?", id);
    if (this.#count() === 0 && this.#revokedAt() === undefined) await this.#forget();
  }

  /** Whether a token that was issued then (seconds since 1970) counts no more. */
  covers(issuedAt: number | undefined): boolean {
    const at = this.#revokedAt();
    if (at === undefined) return false;
    return this.ctx.id.name?.startsWith("token:") === true || (issuedAt ?? 0) <= at;
  }

  /** Take the tokens back, or the token; returns how many connections that closed. */
  async revoke(revocation: Revocation): Promise<number> {
    this.#make();
    this.#sql.exec("INSERT OR REPLACE INTO revoked (one, at) VALUES (1, ?)", revocation.at);
    await this.ctx.storage.setAlarm(Date.now() + REMEMBERED_MS);
    const closed = await Promise.all(
      this.#rooms().map((room) => this.#roomOf(room).closeRevoked(revocation)),
    );
    return closed.reduce((sum, count) => sum + count, 0);
  }

  override async alarm(): Promise<void> {
    if (!this.#isMade()) return;
    this.#sql.exec("DELETE FROM revoked WHERE at <= ?", (Date.now() - REMEMBERED_MS) / 1000);
    if (this.#count() === 0) await this.#forget();
  }

  async #forgetGone(): Promise<void> {
    const known = new Map(this.#rooms().map((room) => [room, new Set<string>()]));
    await Promise.all(
      [...known].map(async ([room, ids]) => {
        for (const id of await this.#roomOf(room).connectionIds()) ids.add(id);
      }),
    );
    for (const { id, room } of this.#sql.exec("SELECT id, room FROM connections").toArray()) {
      // A room that came meanwhile was not asked.
      if (known.get(room as string)?.has(id as string) === false) {
        this.#sql.exec("DELETE FROM connections WHERE id = ?", id);
      }
    }
  }

  #roomOf(room: string) {
    return this.env.NOTIFICATION_ROOM.get(this.env.NOTIFICATION_ROOM.idFromName(room));
  }

  #rooms(): string[] {
    const rows = this.#sql.exec("SELECT DISTINCT room FROM connections").toArray();
    return rows.map((row) => row["room"] as string);
  }

  #count(): number {
    return this.#sql.exec("SELECT count(*) AS n FROM connections").one()["n"] as number;
  }

  #revokedAt(): number | undefined {
    if (!this.#isMade()) return undefined;
    const [row] = this.#sql.exec("SELECT at FROM revoked").toArray();
    return row === undefined ? undefined : (row["at"] as number);
  }

  /** Who only asks makes nothing. */
  #isMade(): boolean {
    return this.#sql.exec("SELECT 1 FROM sqlite_master WHERE name = 'revoked'").toArray().length > 0;
  }

  #make(): void {
    this.#sql.exec("CREATE TABLE IF NOT EXISTS connections (id TEXT PRIMARY KEY, room TEXT NOT NULL)");
    this.#sql.exec("CREATE TABLE IF NOT EXISTS revoked (one INTEGER PRIMARY KEY, at REAL NOT NULL)");
  }

  /** An object that holds nothing costs nothing. */
  async #forget(): Promise<void> {
    await this.ctx.storage.deleteAlarm();
    await this.ctx.storage.deleteAll();
  }
}
