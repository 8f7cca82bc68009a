/**
 * The keys of a room that folds notifications, in its object's SQLite. See folds.ts for the rules.
 *
 * Cloudflare bills rows, not bytes. So a key is one row with the last write and the end of its text, which each
 * publish rewrites once however many pieces it has. The text before is in chunks that are never rewritten.
 */

import { sliceOf } from "../protocol/codepoints";
import { MAX_ATTEMPT, type Fold } from "../protocol/folding";
import type { Publication } from "./entries";
import {
  IDLE_KEY_S, MAX_OPEN_KEYS, placeWrite, RUN_HAS_ENDED, TOO_MANY_KEYS, withPiece, type Conflict, type KeyFields, type Placement,
} from "./folds";

/** The end of a text becomes a chunk at this length, in UTF-16 code units. */
const MAX_TAIL = 8192;

/** A key, or one that was closed and whose entry is still in the log. */
export interface Key extends KeyFields {
  /** The offset of the first write of its text; other texts of this name have other ids. */
  readonly id: number;
  readonly name: string;
  attempt: number;
  length: number;
  size: number;
  isClosed: boolean;
  /** The offset of its entry: that of the last write. */
  offset: number;
  /** The size of the folded notification. */
  bytes: number;
  /** Whether delivery of the last write counts as acknowledgement. */
  isReceived: boolean;
  /** How many entries of its text were delivered live, and the number of the last one. */
  deliveries: number;
  lastIndex: number | undefined;
  /** Pieces were joined, so that the publisher's numbers no longer fit. */
  isRenumbered: boolean;
  /** Where the part of the text begins that is not in chunks, in code points. */
  tailStart: number;
  /** That part; undefined: it was not read yet. */
  tail: string | undefined;
}

type Row = Record<
  "id" | "attempt" | "length" | "size" | "closed" | "offset" | "bytes" | "received" | "deliveries" | "renumbered" |
    "tail_start",
  number
> & { name: string; mode: Key["mode"]; last_index: number | null };

export class Keys {
  readonly #sql: SqlStorage;
  /** By id, in the order of their entries. */
  #all: Map<number, Key> | undefined;
  /** The latest of each name. */
  readonly #named = new Map<string, Key>();
  /** Keys with the text of their last write, to be stored. */
  readonly #changed = new Map<Key, string>();
  readonly #stored = new Set<number>();

  /** @param isCreated whether the storage has the tables of keys. */
  constructor(sql: SqlStorage, isCreated: boolean) {
    this.#sql = sql;
    if (!isCreated) this.#all = new Map();
  }

  /** Create the table of keys. That of chunks is created with the first one, because each table is two billed rows. */
  static create(sql: SqlStorage): void {
    // The texts are the last columns, because SQLite reads through them to reach later ones.
    sql.exec(`
      CREATE TABLE fold (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, mode TEXT NOT NULL, attempt INTEGER NOT NULL,
        length INTEGER NOT NULL, size INTEGER NOT NULL, closed INTEGER NOT NULL, offset INTEGER NOT NULL,
        bytes INTEGER NOT NULL, received INTEGER NOT NULL, deliveries INTEGER NOT NULL, last_index INTEGER,
        renumbered INTEGER NOT NULL, tail_start INTEGER NOT NULL, tail TEXT NOT NULL, text TEXT NOT NULL
      )
    `);
  }

  /** Return the latest key of a name whose entry is in the log. */
  find(name: string): Key | undefined {
    this.#load();
    return this.#named.get(name);
  }

  /** Return the keys whose entries are after an offset, in the order of the log. */
  after(offset: number): Key[] {
    return [...this.#load().values()].filter((key) => key.offset > offset);
  }

  /** Return the keys that are open. */
  open(): Key[] {
    return [...this.#load().values()].filter(({ isClosed }) => !isClosed);
  }

  /**
   * Return what a write does. Close a key that is idle, if the write opens another one.
   *
   * @param now microseconds since 1970.
   * @param runHasEnded whether the run that a key belongs to has ended.
   */
  place(
    { fold, bytes }: Publication & { fold: Fold },
    now: number,
    runHasEnded: (key: string) => boolean,
  ): Placement | "repeated" | Conflict {
    const key = this.find(fold.key);
    // The end of a run closes its keys, so that the run of an open key has not ended.
    if (key?.isClosed !== false && runHasEnded(fold.key)) return RUN_HAS_ENDED;
    const placement = placeWrite(key, fold, bytes, (start, end) => this.#read(key!, start, end));
    if (typeof placement === "string" || "code" in placement || placement.effect !== "begin" || fold.final) {
      return placement;
    }
    const [idle, ...others] = this.open();
    if (idle === undefined || others.length + 1 < MAX_OPEN_KEYS) return placement;
    if (idle.offset + IDLE_KEY_S * 1e6 > now) return TOO_MANY_KEYS;
    idle.isClosed = true;
    this.#sql.exec("UPDATE fold SET closed = 1 WHERE id = ?", idle.id);
    return placement;
  }

  /** Apply a write, which {@link flush} stores. Return its key. */
  write({ fold, text }: Publication & { fold: Fold }, placement: Placement, offset: number, isReceived: boolean): Key {
    const all = this.#load();
    let key = this.#named.get(fold.key);
    if (placement.effect === "restart") this.#remove(key!);
    if (key === undefined || placement.effect !== "continue") {
      key = {
        id: offset, name: fold.key, mode: fold.mode, attempt: 0, length: 0, size: 0, isClosed: false, offset, bytes: 0,
        isReceived, deliveries: 0, lastIndex: undefined, isRenumbered: false, tailStart: 0, tail: "",
      };
      this.#named.set(key.name, key);
    }
    if (fold.piece !== "") key.tail = this.#tailOf(key) + fold.piece;
    const { length, size, bytes } = placement;
    Object.assign(key, { attempt: fold.attempt, length, size, bytes, offset, isReceived, isClosed: fold.final });
    all.delete(key.id);
    all.set(key.id, key); // behind all others
    this.#changed.set(key, text);
    return key;
  }

  /** Close a key for good, if there is one: the run that it belongs to has ended. */
  end(name: string): void {
    const key = this.find(name);
    if (key === undefined) return;
    [key.isClosed, key.attempt] = [true, MAX_ATTEMPT];
    if (this.#stored.has(key.id)) {
      this.#sql.exec("UPDATE fold SET closed = 1, attempt = ? WHERE id = ?", MAX_ATTEMPT, key.id);
    }
  }

  /** Return the whole text of a key; undefined if there is no such key of the mode `append`. */
  textOf(name: string): string | undefined {
    const key = this.find(name);
    return key?.mode === "append" ? this.#read(key, 0, key.length) : undefined;
  }

  /** Store the keys that were written. */
  flush(): void {
    for (const [key, text] of this.#changed) this.#store(key, text);
    this.#changed.clear();
  }

  /** Remove the keys whose entries are up to an offset. Return how many, and their size. */
  removeUntil(offset: number): { held: number; bytes: number } {
    const removed = [...this.#load().values()].filter((key) => key.offset <= offset);
    for (const key of removed) this.#remove(key);
    return { held: removed.length, bytes: removed.reduce((sum, { bytes }) => sum + bytes, 0) };
  }

  /** Return the folded notification as JSON, with the whole text. */
  read(key: Key): string {
    const { text } = this.#sql.exec<{ text: string }>("SELECT text FROM fold WHERE id = ?", key.id).one();
    return key.mode === "replace" ? text : withPiece(text, this.#read(key, 0, key.length), 0, 0);
  }

  /** Forget what is not stored. */
  reset(isCreated: boolean): void {
    this.#all = isCreated ? undefined : new Map();
    for (const each of [this.#named, this.#changed, this.#stored]) each.clear();
  }

  #load(): Map<number, Key> {
    if (this.#all !== undefined) return this.#all;
    this.#all = new Map();
    const rows = this.#sql.exec<Row>(
      `SELECT id, name, mode, attempt, length, size, closed, offset, bytes, received, deliveries, last_index,
       renumbered, tail_start FROM fold ORDER BY offset`,
    );
    for (const row of rows) {
      const { id, name, mode, attempt, length, size, offset, bytes, deliveries } = row;
      const key: Key = {
        id, name, mode, attempt, length, size, isClosed: row.closed === 1, offset, bytes,
        isReceived: row.received === 1, deliveries, lastIndex: row.last_index ?? undefined,
        isRenumbered: row.renumbered === 1, tailStart: row.tail_start, tail: undefined,
      };
      this.#all.set(id, key);
      this.#named.set(name, key);
      this.#stored.add(id);
    }
    return this.#all;
  }

  #store(key: Key, text: string): void {
    let tail = this.#tailOf(key);
    if (tail.length > MAX_TAIL) {
      this.#sql.exec(`
        CREATE TABLE IF NOT EXISTS chunk (
          fold INTEGER NOT NULL, start INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (fold, start)
        ) WITHOUT ROWID
      `);
      this.#sql.exec("INSERT INTO chunk (fold, start, text) VALUES (?, ?, ?)", key.id, key.tailStart, tail);
      key.tailStart = key.length;
      tail = "";
    }
    const values = [
      key.attempt, key.length, key.size, key.isClosed ? 1 : 0, key.offset, key.bytes, key.isReceived ? 1 : 0,
      key.deliveries, key.lastIndex ?? null, key.isRenumbered ? 1 : 0, key.tailStart, tail, text,
    ];
    if (this.#stored.has(key.id)) {
      this.#sql.exec(
        `UPDATE fold SET attempt = ?, length = ?, size = ?, closed = ?, offset = ?, bytes = ?, received = ?,
         deliveries = ?, last_index = ?, renumbered = ?, tail_start = ?, tail = ?, text = ? WHERE id = ?`,
        ...values,
        key.id,
      );
    } else {
      this.#sql.exec(
        `INSERT INTO fold (attempt, length, size, closed, offset, bytes, received, deliveries, last_index, renumbered,
         tail_start, tail, text, id, name, mode) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        ...values, key.id, key.name, key.mode,
      );
      this.#stored.add(key.id);
    }
    key.tail = key.isClosed ? undefined : tail; // only the ends of texts that grow are kept in memory
  }

  #remove(key: Key): void {
    this.#load().delete(key.id);
    this.#changed.delete(key);
    if (this.#named.get(key.name) === key) this.#named.delete(key.name);
    if (!this.#stored.delete(key.id)) return;
    this.#sql.exec("DELETE FROM fold WHERE id = ?", key.id);
    if (key.tailStart > 0) this.#sql.exec("DELETE FROM chunk WHERE fold = ?", key.id);
  }

  #tailOf(key: Key): string {
    key.tail ??= this.#sql.exec<{ tail: string }>("SELECT tail FROM fold WHERE id = ?", key.id).one().tail;
    return key.tail;
  }

  /** Return a part of a text, between two offsets in code points. */
  #read(key: Key, start: number, end: number): string {
    if (start >= end) return "";
    const parts = end > key.tailStart ? [this.#tailOf(key)] : [];
    let begin = key.tailStart;
    if (start < key.tailStart) {
      for (const row of this.#sql.exec<{ start: number; text: string }>(
        "SELECT start, text FROM chunk WHERE fold = ? AND start < ? ORDER BY start DESC",
        key.id,
        end,
      )) {
        parts.push(row.text);
        begin = row.start;
        if (begin <= start) break;
      }
    }
    const text = parts.reverse().join("");
    return start === 0 && end === key.length ? text : sliceOf(text, start - begin, end - begin);
  }
}
