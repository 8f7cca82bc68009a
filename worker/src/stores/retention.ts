/**
 * What a room deletes: the oldest entries above the limits, and what has expired.
 *
 * A single reading of the clock deletes no notification, device or record of a job: only what two alarms, minutes
 * apart, have found expired is deleted. Reads do not filter by age.
 */

import type { Settings } from "../settings";
import { AgeCheck } from "./ages";
import type { Devices } from "./devices";
import type { WrittenIds } from "./ids";
import type { Jobs } from "./jobs";
import type { Keys } from "./keys";
import { mergeByOffset } from "./merge";
import { saveState, type State } from "./state";

/** The deduplication window. */
export const DEDUPE_S = 300;

/** What a room stores beside the table of its log. */
export interface Tables {
  keys: Keys;
  ids: WrittenIds;
  jobs: Jobs;
  devices: Devices;
}

export class Retention {
  readonly #sql: SqlStorage;
  readonly #kv: SyncKvStorage;
  readonly #ages: AgeCheck;

  /** @param ageUs how long the room keeps a notification. */
  constructor(
    storage: DurableObjectStorage,
    private readonly tables: Tables,
    private readonly settings: Settings,
    private readonly ageUs: number,
  ) {
    this.#sql = storage.sql;
    this.#kv = storage.kv;
    this.#ages = new AgeCheck(storage.kv);
  }

  /** Remove the oldest notifications above the limits. Their ids stay for the deduplication window. */
  trim(state: State): void {
    const { retentionCount, maxRoomBytes } = this.settings;
    if (state.held <= retentionCount && state.bytes <= maxRoomBytes) return;
    let { held, bytes } = state;
    let until = state.trimmedUntil;
    const rows = this.#sql.exec<{ offset: number; bytes: number }>(
      "SELECT offset, bytes FROM log WHERE offset > ? ORDER BY offset",
      state.trimmedUntil,
    );
    for (const entry of mergeByOffset(rows, this.tables.keys.after(state.trimmedUntil))) {
      if (held <= retentionCount && (bytes <= maxRoomBytes || held === 1)) break;
      until = entry.offset;
      held--;
      bytes -= entry.bytes;
    }
    this.#trimUntil(state, until);
  }

  /** Delete what two readings of the clock have found expired. */
  sweep(state: State): void {
    const foundAt = this.#ages.confirm((now) => this.#hasExpired(state, now));
    if (foundAt === undefined) return;
    this.#trimUntil(state, this.#lastExpired(state, foundAt));
    this.#deleteIds(state, foundAt);
    this.tables.devices.removeExpired(foundAt);
    if (state.jobs) this.tables.jobs.removeExpired(foundAt);
  }

  /** Return when to sweep, some time after the next expiry, in ms since 1970; undefined: never. */
  nextSweep(state: State): number | undefined {
    const { dueAt } = this.#ages;
    if (dueAt !== undefined) return dueAt;
    // A quarter later, so that one alarm deletes many.
    const keptUs = Math.max(this.ageUs, DEDUPE_S * 1e6) + this.ageUs / 4;
    const { devices, jobs } = this.tables;
    const nextRecord = state.jobs ? jobs.nextExpiry() : Infinity;
    const next = Math.min((this.#oldest() + keptUs) / 1000, devices.nextExpiry(), nextRecord);
    return next < Infinity ? next : undefined;
  }

  #trimUntil(state: State, offset: number): void {
    if (offset <= state.trimmedUntil) return;
    const { n, sum } = this.#sql
      .exec<{ n: number; sum: number | null }>(
        "SELECT count(*) AS n, sum(bytes) AS sum FROM log WHERE offset > ? AND offset <= ?",
        state.trimmedUntil,
        offset,
      )
      .one();
    const from = state.trimmedUntil;
    const keys = this.tables.keys.removeUntil(offset);
    state.held -= n + keys.held;
    state.bytes -= (sum ?? 0) + keys.bytes;
    state.trimmedUntil = offset;
    saveState(this.#kv, state); // the acknowledged offset of these rows must outlive them
    this.#deleteIds(state, Date.now());
    this.#sql.exec("UPDATE log SET text = '' WHERE offset > ? AND offset <= ?", from, offset);
  }

  /** Delete removed rows, and ids, whose deduplication window is over. */
  #deleteIds(state: State, now: number): void {
    const expired = (now - DEDUPE_S * 1000) * 1000;
    this.#sql.exec("DELETE FROM log WHERE offset <= ?", Math.min(state.trimmedUntil, expired));
    if (state.folds) this.tables.ids.removeUntil(expired);
  }

  /** Whether something has expired at a reading of the clock (ms since 1970). */
  #hasExpired(state: State, now: number): boolean {
    const { devices, jobs } = this.tables;
    if (this.#oldest() <= now * 1000 - this.ageUs || devices.hasExpired(now)) return true;
    return state.jobs && jobs.hasExpired(now);
  }

  /** Return the offset of the oldest row, of the log or of its keys; Infinity: there is none. */
  #oldest(): number {
    const { oldest } = this.#sql.exec<{ oldest: number | null }>("SELECT min(offset) AS oldest FROM log").one();
    return Math.min(oldest ?? Infinity, this.tables.keys.after(0)[0]?.offset ?? Infinity);
  }

  /** Return the highest offset that has expired at a reading of the clock (ms since 1970), or was removed. */
  #lastExpired(state: State, now: number): number {
    const until = now * 1000 - this.ageUs;
    const { trimmed } = this.#sql
      .exec<{ trimmed: number | null }>("SELECT max(offset) AS trimmed FROM log WHERE offset <= ?", until)
      .one();
    const keys = this.tables.keys.after(0).filter(({ offset }) => offset <= until);
    return Math.max(state.trimmedUntil, trimmed ?? 0, keys.at(-1)?.offset ?? 0);
  }
}
