/** The ids of folded notifications, whose entries do not stay where they were written. For deduplication. */

/** How often expired ids are removed, in microseconds. */
const CLEAN_INTERVAL_US = 300e6;

export class WrittenIds {
  #cleanedUntil = 0;
  /** Whether there is a table; undefined: not looked up yet. */
  #isCreated: boolean | undefined;

  constructor(private readonly sql: SqlStorage) {}

  /** Return the offset and the count of the write with an id, if it is after an offset. */
  find(id: string, after: number): { offset: number; count: number } | undefined {
    if (!this.#exists()) return undefined;
    return this.sql
      .exec<{ offset: number; count: number }>("SELECT offset, count FROM written WHERE id = ? AND offset > ?", id, after)
      .toArray()[0];
  }

  /** @param expired the offset up to which ids are no longer needed. */
  add(id: string, offset: number, count: number, expired: number): void {
    if (!this.#exists()) {
      this.sql.exec(
        "CREATE TABLE written (id TEXT PRIMARY KEY, offset INTEGER NOT NULL, count INTEGER NOT NULL) WITHOUT ROWID",
      );
      this.#isCreated = true;
    }
    if (Math.abs(expired - this.#cleanedUntil) > CLEAN_INTERVAL_US) this.removeUntil(expired);
    this.sql.exec("INSERT OR REPLACE INTO written (id, offset, count) VALUES (?, ?, ?)", id, offset, count);
  }

  removeUntil(offset: number): void {
    this.#cleanedUntil = offset;
    if (this.#exists()) this.sql.exec("DELETE FROM written WHERE offset <= ?", offset);
  }

  /** Forget what was looked up. */
  reset(): void {
    this.#isCreated = undefined;
  }

  #exists(): boolean {
    return (this.#isCreated ??=
      this.sql.exec("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'written'").toArray().length > 0);
  }
}
