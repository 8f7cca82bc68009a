/** The records of a room's jobs, in its object's SQLite. See PROTOCOL.md, "Job state". */

import {
  foldJob, hasEnded, jobIdOf, jobToWire, type JobEvent, type JobRecord,
} from "../protocol/job_state";
import { parseStored } from "../protocol/json";

/** About how many bytes the records of a room may take, with their texts. */
const MAX_JOBS_BYTES = 16 * 1024 * 1024;
/** A page ends with the record that reaches it. */
const MAX_PAGE_BYTES = 1024 * 1024;

/** Which records are wanted, newest first. */
export interface JobQuery {
  limit: number;
  /** Empty: all. */
  statuses: string[];
  type?: string;
  /** Where the last page ended. */
  after?: JobPosition;
}

/** The place of a record in the list, which is in descending order. */
export interface JobPosition {
  startedAt: string;
  jobId: string;
}

interface Stored {
  record: JobRecord;
  /** The text of a run that has ended. */
  text: string | null;
  /** The size as it is stored. */
  size: number;
}

/** The number of records and their size. */
interface Totals {
  count: number;
  size: number;
}

export class Jobs {
  /** Records that were changed, to be stored. */
  readonly #changed = new Map<string, Stored>();
  /** Of the stored records; undefined: not counted yet. */
  #totals: Totals | undefined;

  /**
   * @param ageMs how long a record is kept after its last change.
   * @param maxCount how many records a room has.
   */
  constructor(
    private readonly sql: SqlStorage,
    private readonly ageMs: number,
    private readonly maxCount: number,
  ) {}

  /** Create the table. */
  static create(sql: SqlStorage): void {
    // A row without a rowid, because the index of its id would be another row that is billed.
    sql.exec(`
      CREATE TABLE job (
        id TEXT PRIMARY KEY, run TEXT NOT NULL, type TEXT NOT NULL, status TEXT NOT NULL, ended INTEGER NOT NULL,
        started TEXT NOT NULL, changed INTEGER NOT NULL, size INTEGER NOT NULL, record TEXT NOT NULL, text TEXT
      ) WITHOUT ROWID
    `);
  }

  /**
   * Change the record of a job by an event. {@link flush} stores it.
   *
   * @param textOf returns the text of a run, which the record of a run that has ended keeps.
   */
  apply(event: JobEvent, textOf: (runId: string) => string | undefined): void {
    const id = jobIdOf(event);
    const present = this.#find(id);
    const record = foldJob(present?.record, event);
    if (record === present?.record) return;
    const text = hasEnded(record) ? (textOf(record.runId) ?? null) : null;
    this.#changed.set(id, { record, text, size: present?.size ?? 0 });
  }

  /** Whether there is the record of a run that has ended. */
  hasEnded(runId: string): boolean {
    const changed = [...this.#changed.values()].find(({ record }) => record.runId === runId);
    if (changed !== undefined) return hasEnded(changed.record);
    const ids = this.sql.exec<{ id: string }>("SELECT id FROM job WHERE run = ? AND ended", runId).toArray();
    return ids.some(({ id }) => !this.#changed.has(id)); // else another run has superseded it
  }

  /** Store the records that were changed, and delete surplus ones. */
  flush(now: number): void {
    if (this.#changed.size === 0) return;
    const totals = (this.#totals ??= this.#count());
    for (const [id, stored] of this.#changed) this.#store(id, stored, now, totals);
    this.#removeSurplus(totals, [...this.#changed.keys()].at(-1)!);
    this.#changed.clear();
  }

  /** Return a record as JSON, with the text of its run; undefined if there is none. */
  read(id: string, textOf: (runId: string) => string | undefined): object | undefined {
    const found = this.#find(id);
    if (found === undefined) return undefined;
    const { record, text } = found;
    return jobToWire(record, hasEnded(record) ? (text ?? undefined) : textOf(record.runId));
  }

  /** Return records as JSON, without texts, and where the next page begins; null if there is none. */
  list({ limit, statuses, type, after }: JobQuery): { jobs: object[]; next: string | null } {
    const conditions: string[] = [];
    const values: string[] = [];
    const where = (condition: string, ...given: string[]): void => {
      conditions.push(condition);
      values.push(...given);
    };
    if (statuses.length > 0) where(`status IN (${statuses.map(() => "?").join(", ")})`, ...statuses);
    if (type !== undefined) where("type = ?", type);
    if (after !== undefined) where("(started, id) < (?, ?)", after.startedAt, after.jobId);
    const rows = this.sql
      .exec<{ id: string; started: string }>(
        `SELECT id, started FROM job ${conditions.length > 0 ? `WHERE ${conditions.join(" AND ")}` : ""}
         ORDER BY started DESC, id DESC LIMIT ?`,
        ...values,
        limit + 1,
      )
      .toArray();
    const jobs: object[] = [];
    let bytes = 0;
    for (const { id, started } of rows) {
      const { record } = this.#find(id)!;
      const job = jobToWire(record);
      bytes += sizeOf(JSON.stringify(job));
      jobs.push(job);
      if (jobs.length === rows.length) break;
      if (jobs.length === limit || bytes >= MAX_PAGE_BYTES) return { jobs, next: `${started}/${id}` };
    }
    return { jobs, next: null };
  }

  /** Whether a record has expired at a reading of the clock (ms since 1970). */
  hasExpired(now: number): boolean {
    return this.#oldest() <= now - this.ageMs;
  }

  /** Remove the records that have expired at a reading of the clock (ms since 1970). */
  removeExpired(now: number): void {
    this.#totals = undefined;
    this.sql.exec("DELETE FROM job WHERE changed <= ?", now - this.ageMs);
  }

  /** Return when to look for expired records, in ms since 1970, so that one alarm deletes many; Infinity: never. */
  nextExpiry(): number {
    return this.#oldest() + this.ageMs * 1.04;
  }

  /** Forget what is not stored. */
  reset(): void {
    this.#changed.clear();
    this.#totals = undefined;
  }

  #find(id: string): Stored | undefined {
    const changed = this.#changed.get(id);
    if (changed !== undefined) return changed;
    const [row] = this.sql
      .exec<{ record: string; text: string | null; size: number }>("SELECT record, text, size FROM job WHERE id = ?", id)
      .toArray();
    if (row === undefined) return undefined;
    return { record: parseStored(row.record) as JobRecord, text: row.text, size: row.size };
  }

  #count(): Totals {
    const { count, size } = this.sql
      .exec<{ count: number; size: number | null }>("SELECT count(*) AS count, sum(size) AS size FROM job")
      .one();
    return { count, size: size ?? 0 };
  }

  #store(id: string, { record, text, size: previous }: Stored, now: number, totals: Totals): void {
    const content = JSON.stringify(record);
    const size = sizeOf(content) + sizeOf(text ?? "");
    totals.count += previous === 0 ? 1 : 0;
    totals.size += size - previous;
    const { runId, type, status, startedAt } = record;
    const values = [runId, type, status, hasEnded(record) ? 1 : 0, startedAt ?? "", now, size, content, text];
    this.sql.exec(
      `INSERT INTO job (run, type, status, ended, started, changed, size, record, text, id)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET run = excluded.run, type = excluded.type,
       status = excluded.status, ended = excluded.ended, started = excluded.started, changed = excluded.changed,
       size = excluded.size, record = excluded.record, text = excluded.text`,
      ...values,
      id,
    );
  }

  /** Delete records of a room that has too many, or too large ones: those that have ended first, but not this one. */
  #removeSurplus(totals: Totals, written: string): void {
    const isOver = () => totals.count > this.maxCount || totals.size > MAX_JOBS_BYTES;
    if (!isOver()) return;
    for (const { id, size } of this.sql
      .exec<{ id: string; size: number }>("SELECT id, size FROM job ORDER BY ended DESC, changed, started")
      .toArray()) {
      if (!isOver()) break;
      if (id === written) continue;
      this.sql.exec("DELETE FROM job WHERE id = ?", id);
      totals.count--;
      totals.size -= size;
    }
  }

  /** Return when the record that was changed longest ago was changed, in ms since 1970; Infinity: there is none. */
  #oldest(): number {
    const { oldest } = this.sql.exec<{ oldest: number | null }>("SELECT min(changed) AS oldest FROM job").one();
    return oldest ?? Infinity;
  }
}

function sizeOf(text: string): number {
  return new TextEncoder().encode(text).length;
}
