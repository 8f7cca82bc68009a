/** The state of a room's log besides its entries: how it is stored, and loaded after the object slept. */

import { Jobs } from "./jobs";
import { Keys } from "./keys";

const SCHEMA_VERSION = 1;
const META = "log"; // the storage key of Meta

/** The stored state. */
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
export interface State {
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
  /** Whether the storage has what the entries do not show. */
  isSaved: boolean;
}

/** Whether the storage has the tables of folded notifications. */
export function hasKeyTables(kv: SyncKvStorage): boolean {
  return kv.get<Meta>(META)?.folds === true;
}

/** Return the state; undefined if there is no log. */
export function loadState(kv: SyncKvStorage, sql: SqlStorage, keys: Keys): State | undefined {
  const meta = kv.get<Meta>(META);
  if (meta === undefined) return undefined;
  const { trimmedUntil } = meta;
  const log = sql
    .exec<{ last: number | null; held: number; bytes: number | null; received: number | null }>(
      `SELECT max(offset) AS last, count(*) AS held, sum(bytes) AS bytes,
       max(CASE WHEN received THEN offset END) AS received FROM log WHERE offset > ?`,
      trimmedUntil,
    )
    .one();
  const folded = keys.after(trimmedUntil);
  const received = folded.filter(({ isReceived }) => isReceived).at(-1)?.offset ?? 0;
  return {
    trimmedUntil,
    last: Math.max(log.last ?? 0, trimmedUntil, folded.at(-1)?.offset ?? 0),
    acknowledged: Math.max(meta.acknowledged, log.received ?? 0, received),
    held: log.held + folded.length,
    bytes: folded.reduce((sum, { bytes }) => sum + bytes, log.bytes ?? 0),
    folds: meta.folds === true,
    jobs: meta.jobs === true,
    isSaved: true,
  };
}

/** Store what the entries do not show. */
export function saveState(kv: SyncKvStorage, state: State): void {
  const { trimmedUntil, acknowledged, folds, jobs } = state;
  const tables = { ...(folds ? { folds } : {}), ...(jobs ? { jobs } : {}) };
  kv.put<Meta>(META, { version: SCHEMA_VERSION, trimmedUntil, acknowledged, ...tables });
  state.isSaved = true;
}

/**
 * Create the table of a log, and return its state, which is to be saved.
 *
 * @param trimmedUntil the offset up to which anything that was published before has expired.
 */
export function createLog(sql: SqlStorage, trimmedUntil: number): State {
  // The text is the last column, because SQLite reads through it to reach later columns.
  sql.exec(`
    CREATE TABLE log (
      offset INTEGER PRIMARY KEY, id TEXT NOT NULL, bytes INTEGER NOT NULL, count INTEGER NOT NULL,
      received INTEGER NOT NULL, text TEXT NOT NULL
    );
    CREATE INDEX log_id ON log (id);
  `);
  const [none, last] = [{ acknowledged: 0, held: 0, bytes: 0, folds: false, jobs: false }, trimmedUntil];
  return { ...none, trimmedUntil, last, isSaved: false };
}

/** Create the table of keys with the first folded notification. */
export function createKeys(sql: SqlStorage, state: State): void {
  if (state.folds) return;
  Keys.create(sql);
  [state.folds, state.isSaved] = [true, false];
}

/** Create the table of records with the first notification about a job. */
export function createJobs(sql: SqlStorage, state: State): void {
  if (state.jobs) return;
  Jobs.create(sql);
  [state.jobs, state.isSaved] = [true, false];
}
