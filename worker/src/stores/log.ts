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
import { keepsId, type Fold } from "../protocol/folding";
import { isEnding, jobEventOf, keysOfRun, runOfKey, textKey } from "../protocol/job_state";
import { parseStored } from "../protocol/json";
import { isRequestRoom } from "../protocol/rooms";
import type { Settings } from "../settings";
import { AgeCheck } from "./ages";
import { Devices } from "./devices";
import { entryOf, type Entry, type Page, type Publication, type PublishResult } from "./entries";
import { WrittenIds } from "./ids";
import { Jobs, type JobQuery } from "./jobs";
import { Keys, type Key } from "./keys";
import { mergeByOffset } from "./merge";
import { PieceJoiner } from "./pieces";

/** The deduplication window. */
const DEDUPE_S = 300;
/** The head of an empty log is this far in the past, so that no clock of another machine is behind it. */
const HEAD_AGE_US = 60e6;
/** The size of a page. It ends with the notification that reaches it. */
const PAGE_BYTES = 512 * 1024;
const SCHEMA_VERSION = 1;
const META = "log"; // the storage key of Meta

/** The stored state of the log, besides its entries. */
interface Meta {
  version: number;
  /** The highest offset that was removed from the log. */
  trimmedUntil: number;
  /** The room's acknowledged offset; 0: none. What was received on delivery is stored with the entries. */
  acknowledged: number;
  /** Whether there are tables for folded notifications, and for records of jobs. */
  folds?: boolean;
  jobs?: boolean;
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
  /** As in {@link Meta}. */
  folds: boolean;
  jobs: boolean;
}

export class Log {
  readonly #storage: DurableObjectStorage;
  readonly #sql: SqlStorage;
  readonly #kv: SyncKvStorage;
  readonly #ages: AgeCheck;
  readonly #devices: Devices;
  readonly #keys: Keys;
  readonly #ids: WrittenIds;
  readonly #jobs: Jobs;
  #isMetaStored = true;
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
    this.#keys = new Keys(storage.sql, storage.kv.get<Meta>(META)?.folds === true);
    this.#ids = new WrittenIds(storage.sql);
    this.#jobs = new Jobs(storage.sql, settings.jobRetentionS * 1000, settings.jobsPerUser);
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
   * Store publications: all, or none if the storage fails. A conflict is a result.
   *
   * @param count the number of connections to which each is delivered.
   * @param isReceived whether delivery counts as acknowledgement.
   * @returns the result of each publication, and the entries to deliver. Consecutive pieces of a text are one entry.
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
      this.#keys.reset(before?.folds === true);
      this.#ids.reset();
      this.#jobs.reset();
      this.#isMetaStored = true;
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
    for (const entry of this.#entriesAfter(Math.max(start, trimmed), limit + 1)) {
      if (entries.length === limit || bytes >= PAGE_BYTES) {
        more = true;
        break;
      }
      entries.push(entry());
      bytes += entries.at(-1)!.bytes;
    }
    return { entries, recovered: !isForeign && !(start > 0 && start < trimmed), more };
  }

  /** Return the keys whose texts grow. */
  openKeys(): Key[] {
    return this.#keys.open();
  }

  /** Return the record of a job, with the text of its run, and the position at which it is valid, as JSON. */
  readJob(id: string): string | undefined {
    if (this.#state?.jobs !== true) return undefined;
    const job = this.#jobs.read(id, (runId) => this.#keys.textOf(textKey(runId)));
    return job === undefined ? undefined : JSON.stringify({ job, cursor: cursorText(this.head()) });
  }

  /** Return records of jobs, newest first, and the position at which they are valid, as JSON. */
  listJobs(query: JobQuery): string {
    const page = this.#state?.jobs === true ? this.#jobs.list(query) : { jobs: [], next: null };
    return JSON.stringify({ ...page, cursor: cursorText(this.head()) });
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
    if (!this.#isMetaStored) this.#saveMeta();
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
      if (this.#state.jobs) this.#jobs.removeExpired(foundAt);
    }
    return this.nextSweep();
  }

  /** Return when to sweep, some time after the next expiry, in ms since 1970; undefined: never. */
  nextSweep(): number | undefined {
    if (this.#state === undefined) return undefined;
    const { dueAt } = this.#ages;
    if (dueAt !== undefined) return dueAt;
    const oldest = this.#oldest();
    // A quarter later, so that one alarm deletes many.
    const keptUs = Math.max(this.#ageUs, DEDUPE_S * 1e6) + this.#ageUs / 4;
    const next = Math.min(
      (oldest + keptUs) / 1000,
      this.#devices.nextExpiry(),
      this.#state.jobs ? this.#jobs.nextExpiry() : Infinity,
    );
    return next < Infinity ? next : undefined;
  }

  /** Reset the cache after the storage was deleted. */
  reset(): void {
    this.#state = undefined;
    this.#keys.reset(false);
    this.#ids.reset();
    this.#jobs.reset();
  }

  #insert(publications: Publication[], count: number, isReceived: boolean) {
    const state = this.#create();
    const publishResults: PublishResult[] = [];
    const entries: Entry[] = [];
    const pieces = new PieceJoiner(this.room);
    for (const publication of publications) {
      const { id, text, bytes, fold } = publication;
      const now = nowUs();
      const first = this.#firstWrite(id, now - DEDUPE_S * 1e6);
      if (first !== undefined) {
        publishResults.push(resultOf(id, this.#cursor(first.offset), first.count, true));
        continue;
      }
      if (fold !== undefined) {
        const result = this.#fold({ ...publication, fold }, now, count, isReceived, pieces, entries);
        publishResults.push(result);
        const isStored = !result.duplicate && result.conflict === undefined;
        if (isStored && publication.hasJob === true) this.#applyJob(text);
        continue;
      }
      const cursor = this.#cursor((state.last = Math.max(state.last + 1, now)));
      this.#sql.exec(
        "INSERT INTO log (offset, id, text, bytes, count, received) VALUES (?, ?, ?, ?, ?, ?)",
        cursor.offset, id, text, bytes, count, isReceived ? 1 : 0,
      );
      if (isReceived) state.acknowledged = cursor.offset;
      state.held++;
      state.bytes += bytes;
      entries.push(...pieces.take(count > 0), entryOf(this.room, cursor, text, bytes));
      publishResults.push(resultOf(id, cursor, count, false));
      if (publication.hasJob === true) this.#applyJob(text);
    }
    entries.push(...pieces.take(count > 0));
    this.#keys.flush();
    this.#jobs.flush(Date.now());
    if (!this.#isMetaStored) this.#saveMeta();
    this.#trim(state);
    return { publishResults, entries };
  }

  /** Fold a publication into the entry of its key, and add what is to be delivered. */
  #fold(
    publication: Publication & { fold: Fold },
    now: number,
    count: number,
    isReceived: boolean,
    pieces: PieceJoiner,
    entries: Entry[],
  ): PublishResult {
    const { id, text, bytes, fold } = publication;
    const state = this.#createKeys();
    const before = this.#keys.find(fold.key);
    const placement = this.#keys.place(publication, now, (key) => this.#runHasEnded(key));
    if (placement === "repeated") return resultOf(id, this.#cursor(before!.offset), 0, true);
    if ("code" in placement) return { ...resultOf(id, this.#cursor(0), 0, false), conflict: placement };
    const replaced = placement.effect === "begin" ? undefined : before;
    // The acknowledged offset is stored with the entries. This one leaves its offset.
    if (replaced?.isReceived === true && !isReceived) this.#isMetaStored = false;
    state.held += replaced === undefined ? 1 : 0;
    state.bytes += placement.bytes - (replaced?.bytes ?? 0);
    const cursor = this.#cursor((state.last = Math.max(state.last + 1, now)));
    if (isReceived) state.acknowledged = cursor.offset;
    const key = this.#keys.write(publication, placement, cursor.offset, isReceived);
    if (fold.mode === "append") pieces.add(key, publication, placement.offset, cursor);
    else entries.push(...pieces.take(count > 0), entryOf(this.room, cursor, text, bytes));
    if (keepsId(fold)) this.#ids.add(id, cursor.offset, count, now - DEDUPE_S * 1e6);
    return resultOf(id, cursor, count, false);
  }

  /** Change the record of a job, and end the keys of a run that has ended. */
  #applyJob(text: string): void {
    const state = this.#state!;
    if (!state.jobs) {
      Jobs.create(this.#sql);
      state.jobs = true;
      this.#isMetaStored = false;
    }
    const event = jobEventOf(parseStored(text) as Record<string, unknown>);
    this.#jobs.apply(event, (runId) => this.#keys.textOf(textKey(runId)));
    if (isEnding(event)) for (const key of keysOfRun(event.runId)) this.#keys.end(key);
  }

  #runHasEnded(key: string): boolean {
    const runId = this.#state!.jobs ? runOfKey(key) : undefined;
    return runId !== undefined && this.#jobs.hasEnded(runId);
  }

  /** Return the offset and the count of the publication with an id, if it is after an offset. */
  #firstWrite(id: string, after: number): { offset: number; count: number } | undefined {
    const [first] = this.#sql
      .exec<{ offset: number; count: number }>(
        "SELECT offset, count FROM log WHERE id = ? AND offset > ? ORDER BY offset DESC LIMIT 1",
        id,
        after,
      )
      .toArray();
    return first ?? (this.#state!.folds ? this.#ids.find(id, after) : undefined);
  }

  /** Return up to `limit` entries after an offset, oldest first, and the folded ones, each as a function that reads it. */
  *#entriesAfter(offset: number, limit: number): Generator<() => Entry> {
    const rows = this.#sql.exec<{ offset: number; text: string; bytes: number }>(
      "SELECT offset, text, bytes FROM log WHERE offset > ? ORDER BY offset LIMIT ?",
      offset,
      limit,
    );
    for (const each of mergeByOffset(rows, this.#keys.after(offset))) {
      yield () => ("text" in each ? entryOf(this.room, this.#cursor(each.offset), each.text, each.bytes) : this.#read(each));
    }
  }

  #read(key: Key): Entry {
    const text = this.#keys.read(key);
    const entry = entryOf(this.room, this.#cursor(key.offset), text, new TextEncoder().encode(text).length);
    if (key.mode === "replace") return entry;
    const { id: textId, length, deliveries, isClosed } = key;
    const index = key.lastIndex === undefined ? undefined : 0;
    return { ...entry, piece: { textId, length, deliveries, index, isClosed } };
  }

  /** Remove the oldest notifications above the limits. Their ids stay for the deduplication window. */
  #trim(state: State): void {
    const { retentionCount, maxRoomBytes } = this.#settings;
    if (state.held <= retentionCount && state.bytes <= maxRoomBytes) return;
    let { held, bytes } = state;
    let until = state.trimmedUntil;
    const rows = this.#sql.exec<{ offset: number; bytes: number }>(
      "SELECT offset, bytes FROM log WHERE offset > ? ORDER BY offset",
      state.trimmedUntil,
    );
    for (const entry of mergeByOffset(rows, this.#keys.after(state.trimmedUntil))) {
      if (held <= retentionCount && (bytes <= maxRoomBytes || held === 1)) break;
      until = entry.offset;
      held--;
      bytes -= entry.bytes;
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
    const keys = this.#keys.removeUntil(offset);
    state.held -= n + keys.held;
    state.bytes -= (sum ?? 0) + keys.bytes;
    state.trimmedUntil = offset;
    this.#saveMeta(); // the acknowledged offset of these rows must outlive them
    this.#deleteIds(Date.now());
    this.#sql.exec("UPDATE log SET text = '' WHERE offset > ? AND offset <= ?", from, offset);
  }

  /** Delete removed rows whose deduplication window is over. */
  #deleteIds(now: number): void {
    const until = Math.min(this.#state!.trimmedUntil, (now - DEDUPE_S * 1000) * 1000);
    this.#sql.exec("DELETE FROM log WHERE offset <= ?", until);
    if (this.#state!.folds) this.#ids.removeUntil((now - DEDUPE_S * 1000) * 1000);
  }

  #saveMeta(): void {
    const { trimmedUntil, acknowledged, folds, jobs } = this.#state!;
    const tables = { ...(folds ? { folds } : {}), ...(jobs ? { jobs } : {}) };
    this.#kv.put<Meta>(META, { version: SCHEMA_VERSION, trimmedUntil, acknowledged, ...tables });
    this.#isMetaStored = true;
  }

  /** Whether something has expired at a reading of the clock (ms since 1970). */
  #hasExpired(now: number): boolean {
    if (this.#oldest() <= now * 1000 - this.#ageUs || this.#devices.hasExpired(now)) return true;
    return this.#state!.jobs && this.#jobs.hasExpired(now);
  }

  /** Return the offset of the oldest row, of the log or of its keys; Infinity: there is none. */
  #oldest(): number {
    const { oldest } = this.#sql.exec<{ oldest: number | null }>("SELECT min(offset) AS oldest FROM log").one();
    return Math.min(oldest ?? Infinity, this.#keys.after(0)[0]?.offset ?? Infinity);
  }

  /** Return the highest offset that has expired at a reading of the clock (ms since 1970), or was removed. */
  #lastExpired(now: number): number {
    const until = now * 1000 - this.#ageUs;
    const { trimmed } = this.#sql
      .exec<{ trimmed: number | null }>("SELECT max(offset) AS trimmed FROM log WHERE offset <= ?", until)
      .one();
    const keys = this.#keys.after(0).filter(({ offset }) => offset <= until);
    return Math.max(this.#state!.trimmedUntil, trimmed ?? 0, keys.at(-1)?.offset ?? 0);
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
    const keys = meta.folds === true ? this.#keys.after(trimmedUntil) : [];
    const received = keys.filter(({ isReceived }) => isReceived).at(-1)?.offset ?? 0;
    return {
      trimmedUntil,
      last: Math.max(log.last ?? 0, trimmedUntil, keys.at(-1)?.offset ?? 0),
      acknowledged: Math.max(meta.acknowledged, log.received ?? 0, received),
      held: log.held + keys.length,
      bytes: keys.reduce((sum, { bytes }) => sum + bytes, log.bytes ?? 0),
      folds: meta.folds === true,
      jobs: meta.jobs === true,
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
    this.#state = { trimmedUntil, last: trimmedUntil, acknowledged: 0, held: 0, bytes: 0, folds: false, jobs: false };
    this.#isMetaStored = false;
    return this.#state;
  }

  /** Create the tables of folded notifications with the first of them. */
  #createKeys(): State {
    const state = this.#state!;
    if (!state.folds) {
      Keys.create(this.#sql);
      state.folds = true;
      this.#isMetaStored = false;
    }
    return state;
  }
}

function resultOf(id: string, cursor: Cursor, broadcastCount: number, duplicate: boolean): PublishResult {
  return { id, cursor: cursorText(cursor), broadcastCount, duplicate };
}

function nowUs(): number {
  return Date.now() * 1000;
}
