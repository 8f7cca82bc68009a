/**
 * The storage of a room, in its object's SQLite: the log, the ids for deduplication, the acknowledged cursors. The
 * log is a table, and so are folded notifications and records of jobs, as soon as there is one. The rest are keys,
 * because each table has rows that are billed, in each room.
 *
 * An offset is a time in microseconds since 1970, increased where two would be equal. So it is never reused, even
 * after the storage was deleted, and it shows the age of its notification.
 */

import { cursorText, type Cursor } from "../protocol/cursor";
import { keepsId, type Fold } from "../protocol/folding";
import { isEnding, jobEventOf, keysOfRun, runOfKey, textKey } from "../protocol/job_state";
import { parseStored } from "../protocol/json";
import { isRequestRoom } from "../protocol/rooms";
import type { Settings } from "../settings";
import { Devices } from "./devices";
import { entryOf, type Entry, type Page, type Publication, type PublishResult } from "./entries";
import { WrittenIds } from "./ids";
import { Jobs, type JobQuery } from "./jobs";
import { Keys, type Key } from "./keys";
import { mergeByOffset } from "./merge";
import { PieceJoiner } from "./pieces";
import { DEDUPE_S, Retention, type Tables } from "./retention";
import { createJobs, createKeys, createLog, hasKeyTables, loadState, saveState, type State } from "./state";

/** The head of an empty log is this far in the past, so that no clock of another machine is behind it. */
const HEAD_AGE_US = 60e6;
/** The size of a page. It ends with the notification that reaches it. */
const PAGE_BYTES = 512 * 1024;

/** To whom publications are delivered, and what. */
interface Delivery {
  /** The number of connections, and whether delivery counts as acknowledgement. */
  count: number;
  isReceived: boolean;
  entries: Entry[];
  /** Pieces of texts that follow the entries. */
  pieces: PieceJoiner;
}

export class Log {
  readonly #storage: DurableObjectStorage;
  readonly #sql: SqlStorage;
  readonly #kv: SyncKvStorage;
  readonly #tables: Tables;
  readonly #retention: Retention;
  readonly #epoch: string;
  readonly #ageUs: number;
  #state: State | undefined;

  /** @param epoch the epoch of all cursors of this room. */
  constructor(storage: DurableObjectStorage, settings: Settings, room: string, epoch: string) {
    const { sql, kv } = storage;
    this.#storage = storage;
    this.#sql = sql;
    this.#kv = kv;
    this.#epoch = epoch;
    const ageS = isRequestRoom(room) ? settings.requestRetentionS : settings.retentionS;
    this.#ageUs = ageS * 1e6;
    this.room = room;
    this.#tables = {
      keys: new Keys(sql, hasKeyTables(kv)),
      ids: new WrittenIds(sql),
      jobs: new Jobs(sql, settings.jobRetentionS * 1000, settings.jobsPerUser),
      devices: new Devices(kv),
    };
    this.#retention = new Retention(storage, this.#tables, settings, this.#ageUs);
    this.#state = loadState(kv, sql, this.#tables.keys);
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
      this.#forget(before);
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
    return this.#tables.keys.open();
  }

  /** Return the record of a job, with the text of its run, and the position at which it is valid, as JSON. */
  readJob(id: string): string | undefined {
    if (this.#state?.jobs !== true) return undefined;
    const job = this.#tables.jobs.read(id, (runId) => this.#tables.keys.textOf(textKey(runId)));
    return job === undefined ? undefined : JSON.stringify({ job, cursor: cursorText(this.head()) });
  }

  /** Return records of jobs, newest first, and the position at which they are valid, as JSON. */
  listJobs(query: JobQuery): string {
    const page = this.#state?.jobs === true ? this.#tables.jobs.list(query) : { jobs: [], next: null };
    return JSON.stringify({ ...page, cursor: cursorText(this.head()) });
  }

  /** Return the acknowledged cursor of a device; for an unknown device, and without one, the room's. */
  getAck(device: string | undefined): Cursor | undefined {
    if (this.#state === undefined) return undefined;
    if (device !== undefined) {
      const known = this.#tables.devices.acknowledged(device);
      if (known !== undefined) return this.#cursor(known);
    }
    return this.#state.acknowledged > 0 ? this.#cursor(this.#state.acknowledged) : undefined;
  }

  /** Register a device, with a position as its acknowledged cursor. */
  registerDevice(device: string, position: Cursor): void {
    if (position.epoch !== this.#epoch) return;
    const state = this.#create();
    if (!state.isSaved) saveState(this.#kv, state);
    // A client cannot acknowledge what was not published.
    this.#tables.devices.advance(device, Math.min(position.offset, state.last));
  }

  /** Advance the acknowledged cursors of the room and the device. An earlier position changes nothing. */
  ack(position: Cursor, device: string | undefined): void {
    if (this.#state === undefined || position.epoch !== this.#epoch) return;
    if (position.offset > this.#state.acknowledged) {
      this.#state.acknowledged = position.offset;
      saveState(this.#kv, this.#state);
    }
    if (device !== undefined) {
      if ((this.#tables.devices.acknowledged(device) ?? 0) < position.offset) this.registerDevice(device, position);
    }
  }

  /**
   * Delete what two readings of the clock have found expired.
   *
   * @returns when to sweep again, in ms since 1970; undefined if the log is empty.
   */
  sweep(): number | undefined {
    if (this.#state === undefined) return undefined;
    this.#retention.sweep(this.#state);
    return this.nextSweep();
  }

  /** Return when to sweep, some time after the next expiry, in ms since 1970; undefined: never. */
  nextSweep(): number | undefined {
    return this.#state === undefined ? undefined : this.#retention.nextSweep(this.#state);
  }

  /** Reset the cache after the storage was deleted. */
  reset(): void {
    this.#forget(undefined);
  }

  #forget(state: State | undefined): void {
    this.#state = state;
    const { keys, ids, jobs } = this.#tables;
    keys.reset(state?.folds === true);
    ids.reset();
    jobs.reset();
  }

  #insert(publications: Publication[], count: number, isReceived: boolean) {
    const publishResults: PublishResult[] = [];
    const entries: Entry[] = [];
    const delivery: Delivery = { count, isReceived, entries, pieces: new PieceJoiner(this.room, count > 0) };
    for (const publication of publications) {
      const result = this.#add(publication, delivery);
      publishResults.push(result);
      const isStored = !result.duplicate && result.conflict === undefined;
      if (isStored && publication.hasJob === true) this.#applyJob(publication.text);
    }
    entries.push(...delivery.pieces.take());
    this.#tables.keys.flush();
    this.#tables.jobs.flush(Date.now());
    if (this.#state !== undefined) {
      if (!this.#state.isSaved) saveState(this.#kv, this.#state);
      this.#retention.trim(this.#state);
    }
    return { publishResults, entries };
  }

  /** Store a publication, unless it is a duplicate or conflicts, and add what is to be delivered. */
  #add(publication: Publication, delivery: Delivery): PublishResult {
    const { id, text, bytes, fold } = publication;
    const { count, isReceived } = delivery;
    const now = nowUs();
    const first = this.#firstWrite(id, now - DEDUPE_S * 1e6);
    if (first !== undefined) return resultOf(id, this.#cursor(first.offset), first.count, true);
    if (fold !== undefined) return this.#fold({ ...publication, fold }, now, delivery);
    const state = this.#create();
    const cursor = this.#next(state, now, isReceived);
    this.#sql.exec(
      "INSERT INTO log (offset, id, text, bytes, count, received) VALUES (?, ?, ?, ?, ?, ?)",
      cursor.offset, id, text, bytes, count, isReceived ? 1 : 0,
    );
    state.held++;
    state.bytes += bytes;
    delivery.entries.push(...delivery.pieces.take(), entryOf(this.room, cursor, text, bytes));
    return resultOf(id, cursor, count, false);
  }

  /** Fold a publication into the entry of its key. */
  #fold(publication: Publication & { fold: Fold }, now: number, delivery: Delivery): PublishResult {
    const { id, text, bytes, fold } = publication;
    const { keys, ids } = this.#tables;
    const { count, isReceived, entries, pieces } = delivery;
    const before = keys.find(fold.key);
    const placement = keys.place(publication, now, (key) => this.#runHasEnded(key));
    if (placement === "repeated") return resultOf(id, this.#cursor(before!.offset), 0, true);
    if ("code" in placement) return { ...resultOf(id, this.#cursor(0), 0, false), conflict: placement };
    const state = this.#create();
    createKeys(this.#sql, state);
    const replaced = placement.effect === "begin" ? undefined : before;
    // The acknowledged offset is stored with the entries. This one leaves its offset.
    if (replaced?.isReceived === true && !isReceived) state.isSaved = false;
    state.held += replaced === undefined ? 1 : 0;
    state.bytes += placement.bytes - (replaced?.bytes ?? 0);
    const cursor = this.#next(state, now, isReceived);
    const key = keys.write(publication, placement, cursor.offset, isReceived);
    if (fold.mode === "append") pieces.add(key, publication, placement.offset, cursor);
    else entries.push(...pieces.take(), entryOf(this.room, cursor, text, bytes));
    if (keepsId(fold)) ids.add(id, cursor.offset, count, now - DEDUPE_S * 1e6);
    return resultOf(id, cursor, count, false);
  }

  /** Return the cursor of the next entry. */
  #next(state: State, now: number, isReceived: boolean): Cursor {
    state.last = Math.max(state.last + 1, now);
    if (isReceived) state.acknowledged = state.last;
    return this.#cursor(state.last);
  }

  /** Change the record of a job, and end the keys of a run that has ended. */
  #applyJob(text: string): void {
    const { jobs, keys } = this.#tables;
    createJobs(this.#sql, this.#create());
    const event = jobEventOf(parseStored(text) as Record<string, unknown>);
    jobs.apply(event, (runId) => keys.textOf(textKey(runId)));
    if (isEnding(event)) for (const key of keysOfRun(event.runId)) keys.end(key);
  }

  #runHasEnded(key: string): boolean {
    const runId = this.#state?.jobs === true ? runOfKey(key) : undefined;
    return runId !== undefined && this.#tables.jobs.hasEnded(runId);
  }

  /** Return the offset and the count of the publication with an id, if it is after an offset. */
  #firstWrite(id: string, after: number): { offset: number; count: number } | undefined {
    if (this.#state === undefined) return undefined;
    const [first] = this.#sql
      .exec<{ offset: number; count: number }>(
        "SELECT offset, count FROM log WHERE id = ? AND offset > ? ORDER BY offset DESC LIMIT 1",
        id,
        after,
      )
      .toArray();
    return first ?? (this.#state.folds ? this.#tables.ids.find(id, after) : undefined);
  }

  /** Return up to `limit` entries after an offset, oldest first, and the folded ones, each as a function that reads it. */
  *#entriesAfter(offset: number, limit: number): Generator<() => Entry> {
    const rows = this.#sql.exec<{ offset: number; text: string; bytes: number }>(
      "SELECT offset, text, bytes FROM log WHERE offset > ? ORDER BY offset LIMIT ?",
      offset,
      limit,
    );
    for (const each of mergeByOffset(rows, this.#tables.keys.after(offset))) {
      yield () => ("text" in each ? entryOf(this.room, this.#cursor(each.offset), each.text, each.bytes) : this.#read(each));
    }
  }

  #read(key: Key): Entry {
    const text = this.#tables.keys.read(key);
    const entry = entryOf(this.room, this.#cursor(key.offset), text, new TextEncoder().encode(text).length);
    if (key.mode === "replace") return entry;
    const { id: textId, length, deliveries, isClosed } = key;
    const index = key.lastIndex === undefined ? undefined : 0;
    return { ...entry, piece: { textId, length, deliveries, index, isClosed } };
  }

  #cursor(offset: number): Cursor {
    return { epoch: this.#epoch, offset };
  }

  /** Create the table with the first entry, so that other rooms have none. */
  #create(): State {
    // Anything that was published before has expired.
    return (this.#state ??= createLog(this.#sql, Math.max(0, nowUs() - this.#ageUs)));
  }
}

function resultOf(id: string, cursor: Cursor, broadcastCount: number, duplicate: boolean): PublishResult {
  return { id, cursor: cursorText(cursor), broadcastCount, duplicate };
}

function nowUs(): number {
  return Date.now() * 1000;
}
