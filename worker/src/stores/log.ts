/**
 * The storage of a room, in its object's SQLite: the log, the ids for deduplication, the acknowledged cursors. The
 * log is a table. The rest are keys, because each table has rows that are billed, in each room.
 *
 * An offset is a time in microseconds since 1970, increased where two would be equal. So it is never reused, even
 * after the storage was deleted, and it shows the age of its notification.
 *
 * A single reading of the clock never deletes anything: a notification, a device or an id is deleted only after two
 * alarms, minutes apart, have found it expired. Reads do not filter by age.
 */

import { cursorText, type Cursor } from "../protocol/cursor";
import { isRequestRoom } from "../protocol/rooms";
import type { Settings } from "../settings";
import { AgeCheck } from "./ages";
import { Devices } from "./devices";

/** The deduplication window. */
const DEDUPE_S = 300;
/** The head of an empty log is this far in the past, so that no clock of another machine is behind it. */
const HEAD_AGE_US = 60e6;
/** The size of a page. It ends with the notification that reaches it. */
const PAGE_BYTES = 512 * 1024;
const SCHEMA_VERSION = 1;
const META = "log"; // the storage key of Meta

export interface Publication {
  id: string;
  /** The notification's JSON, without `room` and `cursor`. */
  text: string;
  bytes: number;
}

export interface Entry {
  cursor: Cursor;
  /** The JSON that every subscriber receives. */
  text: string;
  bytes: number;
}

/** The result of a publish. For a duplicate, the result of the first one. */
export interface PublishResult {
  id: string;
  cursor: string;
  broadcastCount: number;
  duplicate: boolean;
}

/** A page of the log, oldest first. `recovered` is false if there may be a gap after the position. */
export interface Page {
  entries: Entry[];
  recovered: boolean;
  more: boolean;
}

/** The stored state of the log, besides its entries. */
interface Meta {
  version: number;
  /** The highest offset that was removed from the log. */
  trimmedUntil: number;
  /** The room's acknowledged offset; 0: none. What was received on delivery is stored with the entries. */
  acknowledged: number;
}

/** A cache of the stored state. */
interface State {
  /** As in {@link Meta}. */
  trimmedUntil: number;
  /** The highest offset that was ever assigned. */
  last: number;
  /** The room's acknowledged offset; 0: none. */
  acknowledged: number;
  /** The size of the log: notifications and bytes. */
  held: number;
  bytes: number;
}

export class Log {
  readonly #storage: DurableObjectStorage;
  readonly #sql: SqlStorage;
  readonly #kv: SyncKvStorage;
  readonly #ages: AgeCheck;
  readonly #devices: Devices;
  readonly #settings: Settings;
  readonly #epoch: string;
  readonly #ageUs: number;
  #state: State | undefined;

  /** @param epoch the epoch of all cursors of this room. */
  constructor(storage: DurableObjectStorage, settings: Settings, room: string, epoch: string) {
    this.#storage = storage;
    this.#sql = storage.sql;
    this.#kv = storage.kv;
    this.#ages = new AgeCheck(storage.kv);
    this.#devices = new Devices(storage.kv);
    this.#settings = settings;
    this.#epoch = epoch;
    const ageS = isRequestRoom(room) ? settings.requestRetentionS : settings.retentionS;
    this.#ageUs = ageS * 1e6;
    this.room = room;
    this.#state = this.#load();
  }

  readonly room: string;

  /** Whether the storage contains a log. */
  get exists(): boolean {
    return this.#state !== undefined;
  }

  earliest(): Cursor {
    return this.#cursor(0);
  }

  /** Return the position after the last notification. Its offset is never 0. */
  head(): Cursor {
    return this.#cursor(this.#state?.last || nowUs() - HEAD_AGE_US);
  }

  /**
   * Store publications, all or none.
   *
   * @param count the number of connections to which each is delivered.
   * @param isReceived whether delivery counts as acknowledgement.
   * @returns the result of each publication, and the entries of the new ones.
   */
  publish(
    publications: Publication[],
    count: number,
    isReceived: boolean,
  ): { publishResults: PublishResult[]; entries: Entry[] } {
    const before = this.#state && { ...this.#state };
    try {
      return this.#storage.transactionSync(() => this.#insert(publications, count, isReceived));
    } catch (error) {
      this.#state = before;
      throw error;
    }
  }

  /** Return up to `limit` entries after a position. */
  read(after: Cursor, limit: number): Page {
    const now = nowUs();
    const last = this.#state?.last ?? 0;
    const isForeign = after.epoch !== this.#epoch || after.offset > Math.max(last, now) + HEAD_AGE_US;
    const start = isForeign ? 0 : after.offset;
    if (this.#state === undefined) {
      // The storage is empty: everything that was published has expired. So a position within the retention has no gap.
      return { entries: [], recovered: !isForeign && !(start > 0 && start < now - this.#ageUs), more: false };
    }
    const trimmed = this.#state.trimmedUntil;
    const entries: Entry[] = [];
    let bytes = 0;
    let more = false;
    for (const row of this.#sql.exec<{ offset: number; text: string; bytes: number }>(
      "SELECT offset, text, bytes FROM log WHERE offset > ? ORDER BY offset LIMIT ?",
      Math.max(start, trimmed),
      limit + 1,
    )) {
      if (entries.length === limit || bytes >= PAGE_BYTES) {
        more = true;
        break;
      }
      const entry = this.#entry(row.offset, row.text, row.bytes);
      entries.push(entry);
      bytes += entry.bytes;
    }
    return { entries, recovered: !isForeign && !(start > 0 && start < trimmed), more };
  }

  /** Return the acknowledged cursor of a device; for an unknown device, and without one, the room's. */
  getAck(device: string | undefined): Cursor | undefined {
    if (this.#state === undefined) return undefined;
    if (device !== undefined) {
      const known = this.#devices.acknowledged(device);
      if (known !== undefined) return this.#cursor(known);
    }
    return this.#state.acknowledged > 0 ? this.#cursor(this.#state.acknowledged) : undefined;
  }

  /** Register a device, with a position as its acknowledged cursor. */
  registerDevice(device: string, position: Cursor): void {
    if (position.epoch !== this.#epoch) return;
    const { last } = this.#create();
    // A client cannot acknowledge what was not published.
    this.#devices.advance(device, Math.min(position.offset, last));
  }

  /** Advance the acknowledged cursors of the room and the device. An earlier position changes nothing. */
  ack(position: Cursor, device: string | undefined): void {
    if (this.#state === undefined || position.epoch !== this.#epoch) return;
    if (position.offset > this.#state.acknowledged) {
      this.#state.acknowledged = position.offset;
      this.#saveMeta();
    }
    if (device !== undefined) {
      if ((this.#devices.acknowledged(device) ?? 0) < position.offset) this.registerDevice(device, position);
    }
  }

  /**
   * Delete what two readings of the clock have found expired.
   *
   * @returns when to sweep again, in ms since 1970; undefined if the log is empty.
   */
  sweep(): number | undefined {
    if (this.#state === undefined) return undefined;
    const foundAt = this.#ages.confirm((now) => this.#hasExpired(now));
    if (foundAt !== undefined) {
      this.#trimUntil(this.#lastExpired(foundAt));
      this.#deleteIds(foundAt);
      this.#devices.removeExpired(foundAt);
    }
    return this.nextSweep();
  }

  /** Return when to sweep, some time after the next expiry, in ms since 1970; undefined: never. */
  nextSweep(): number | undefined {
    if (this.#state === undefined) return undefined;
    const { dueAt } = this.#ages;
    if (dueAt !== undefined) return dueAt;
    const [row] = this.#sql.exec("SELECT min(offset) AS oldest FROM log").toArray();
    const oldest = row?.["oldest"] as number | null;
    // A quarter later, so that one alarm deletes many.
    const keptUs = Math.max(this.#ageUs, DEDUPE_S * 1e6) + this.#ageUs / 4;
    const next = Math.min(
      oldest === null ? Infinity : (oldest + keptUs) / 1000,
      this.#devices.nextExpiry(),
    );
    return next < Infinity ? next : undefined;
  }

  /** Reset the cache after the storage was deleted. */
  reset(): void {
    this.#state = undefined;
  }

  #insert(publications: Publication[], count: number, isReceived: boolean) {
    const state = this.#create();
    const publishResults: PublishResult[] = [];
    const entries: Entry[] = [];
    for (const { id, text, bytes } of publications) {
      const now = nowUs();
      const [first] = this.#sql
        .exec<{ offset: number; count: number }>(
          "SELECT offset, count FROM log WHERE id = ? AND offset > ? ORDER BY offset DESC LIMIT 1",
          id,
          now - DEDUPE_S * 1e6,
        )
        .toArray();
      if (first !== undefined) {
        const cursor = cursorText(this.#cursor(first.offset));
        publishResults.push({ id, cursor, broadcastCount: first.count, duplicate: true });
        continue;
      }
      state.last = Math.max(state.last + 1, now);
      this.#sql.exec(
        "INSERT INTO log (offset, id, text, bytes, count, received) VALUES (?, ?, ?, ?, ?, ?)",
        state.last, id, text, bytes, count, isReceived ? 1 : 0,
      );
      if (isReceived) state.acknowledged = state.last;
      state.held++;
      state.bytes += bytes;
      const entry = this.#entry(state.last, text, bytes);
      entries.push(entry);
      publishResults.push({ id, cursor: cursorText(entry.cursor), broadcastCount: count, duplicate: false });
    }
    this.#trim(state);
    return { publishResults, entries };
  }

  /** Remove the oldest notifications above the limits. Their ids stay for the deduplication window. */
  #trim(state: State): void {
    const { retentionCount, maxRoomBytes } = this.#settings;
    if (state.held <= retentionCount && state.bytes <= maxRoomBytes) return;
    let { held, bytes } = state;
    let until = state.trimmedUntil;
    for (const row of this.#sql.exec<{ offset: number; bytes: number }>(
      "SELECT offset, bytes FROM log WHERE offset > ? ORDER BY offset",
      state.trimmedUntil,
    )) {
      if (held <= retentionCount && (bytes <= maxRoomBytes || held === 1)) break;
      until = row.offset;
      held--;
      bytes -= row.bytes;
    }
    this.#trimUntil(until);
  }

  #trimUntil(offset: number): void {
    const state = this.#state!;
    if (offset <= state.trimmedUntil) return;
    const { n, sum } = this.#sql
      .exec<{ n: number; sum: number | null }>(
        "SELECT count(*) AS n, sum(bytes) AS sum FROM log WHERE offset > ? AND offset <= ?",
        state.trimmedUntil,
        offset,
      )
      .one();
    const from = state.trimmedUntil;
    state.held -= n;
    state.bytes -= sum ?? 0;
    state.trimmedUntil = offset;
    this.#saveMeta(); // the acknowledged offset of these rows must outlive them
    this.#deleteIds(Date.now());
    this.#sql.exec("UPDATE log SET text = '' WHERE offset > ? AND offset <= ?", from, offset);
  }

  /** Delete removed rows whose deduplication window is over. */
  #deleteIds(now: number): void {
    const until = Math.min(this.#state!.trimmedUntil, (now - DEDUPE_S * 1000) * 1000);
    this.#sql.exec("DELETE FROM log WHERE offset <= ?", until);
  }

  #saveMeta(): void {
    const { trimmedUntil, acknowledged } = this.#state!;
    this.#kv.put<Meta>(META, { version: SCHEMA_VERSION, trimmedUntil, acknowledged });
  }

  /** Whether something has expired at a reading of the clock (ms since 1970). */
  #hasExpired(now: number): boolean {
    const [old] = this.#sql
      .exec("SELECT 1 FROM log WHERE offset <= ? LIMIT 1", now * 1000 - this.#ageUs)
      .toArray();
    return old !== undefined || this.#devices.hasExpired(now);
  }

  /** Return the highest offset that has expired at a reading of the clock (ms since 1970), or was removed. */
  #lastExpired(now: number): number {
    const [row] = this.#sql
      .exec<{ trimmed: number | null }>(
        "SELECT max(offset) AS trimmed FROM log WHERE offset <= ?",
        now * 1000 - this.#ageUs,
      )
      .toArray();
    return Math.max(this.#state!.trimmedUntil, row?.trimmed ?? 0);
  }

  #entry(offset: number, text: string, bytes: number): Entry {
    const cursor = this.#cursor(offset);
    // Neither the room nor the cursor can contain a quote or a non-ASCII character.
    const full = `${text.slice(0, -1)},"room":"${this.room}","cursor":"${cursorText(cursor)}"}`;
    return { cursor, text: full, bytes: bytes + full.length - text.length };
  }

  #cursor(offset: number): Cursor {
    return { epoch: this.#epoch, offset };
  }

  #load(): State | undefined {
    const meta = this.#kv.get<Meta>(META);
    if (meta === undefined) return undefined;
    const { trimmedUntil } = meta;
    const log = this.#sql
      .exec<{ last: number | null; held: number; bytes: number | null; received: number | null }>(
        `SELECT max(offset) AS last, count(*) AS held, sum(bytes) AS bytes,
         max(CASE WHEN received THEN offset END) AS received FROM log WHERE offset > ?`,
        trimmedUntil,
      )
      .one();
    return {
      trimmedUntil,
      last: Math.max(log.last ?? 0, trimmedUntil),
      acknowledged: Math.max(meta.acknowledged, log.received ?? 0),
      held: log.held,
      bytes: log.bytes ?? 0,
    };
  }

  /** Create the table with the first publish, so that other rooms have none. */
  #create(): State {
    if (this.#state !== undefined) return this.#state;
    // Anything that was published before has expired.
    const trimmedUntil = Math.max(0, nowUs() - this.#ageUs);
    // The text is the last column, because SQLite reads through it to reach later columns.
    this.#sql.exec(`
      CREATE TABLE log (
        offset INTEGER PRIMARY KEY, id TEXT NOT NULL, bytes INTEGER NOT NULL, count INTEGER NOT NULL,
        received INTEGER NOT NULL, text TEXT NOT NULL
      );
      CREATE INDEX log_id ON log (id);
    `);
    this.#state = { trimmedUntil, last: trimmedUntil, acknowledged: 0, held: 0, bytes: 0 };
    this.#saveMeta();
    return this.#state;
  }
}

function nowUs(): number {
  return Date.now() * 1000;
}
