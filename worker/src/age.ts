/** Age by two readings of the clock, because one may be wrong: deleting cannot be undone. */

/** So long after something was found too old does a second reading have to agree. */
export const CONFIRM_MS = 300_000;
const FOUND_AT = "aged"; // the key of the first reading, in ms since 1970

/** What an object has found too old. The first reading outlives the object's sleep. */
export class AgeCheck {
  readonly #kv: SyncKvStorage;

  constructor(kv: SyncKvStorage) {
    this.#kv = kv;
  }

  /** When to check again, in ms since 1970; undefined: nothing was found. */
  get dueAt(): number | undefined {
    const foundAt = this.#kv.get<number>(FOUND_AT);
    return foundAt === undefined ? undefined : foundAt + CONFIRM_MS;
  }

  /**
   * Read the clock and note whether anything is too old. A clock that has gone back since the first
   * reading takes the note away.
   *
   * @param isAnythingOld at this time, in ms since 1970.
   * @returns the time of the first reading, at least {@link CONFIRM_MS} ago: what was too old then may
   *   be deleted. The note is gone then. Undefined: nothing may be deleted.
   */
  confirm(isAnythingOld: (now: number) => boolean): number | undefined {
    const now = Date.now();
    const foundAt = this.#kv.get<number>(FOUND_AT);
    if (foundAt === undefined || foundAt > now) {
      if (isAnythingOld(now)) this.#kv.put(FOUND_AT, now);
      else if (foundAt !== undefined) this.#kv.delete(FOUND_AT);
      return undefined;
    }
    if (now - foundAt < CONFIRM_MS) return undefined;
    this.#kv.delete(FOUND_AT);
    return foundAt;
  }
}
