/** Confirm ages with two readings of the clock: a single reading may be wrong, and a deletion cannot be undone. */

/** The minimum time between the two readings. */
export const CONFIRM_MS = 300_000;
const FOUND_AT = "aged"; // the key of the first reading, in ms since 1970

/** The age check of one object. The first reading is stored, so it survives hibernation. */
export class AgeCheck {
  readonly #kv: SyncKvStorage;

  constructor(kv: SyncKvStorage) {
    this.#kv = kv;
  }

  /** When to take the second reading, in ms since 1970; undefined: nothing has expired. */
  get dueAt(): number | undefined {
    const foundAt = this.#kv.get<number>(FOUND_AT);
    return foundAt === undefined ? undefined : foundAt + CONFIRM_MS;
  }

  /**
   * Read the clock. If anything has expired, store the reading, or confirm an earlier one. A reading that is now
   * in the future is discarded, because the clock was wrong.
   *
   * @param hasExpired whether anything has expired at a time, in ms since 1970.
   * @returns the first reading, at least {@link CONFIRM_MS} ago: what had expired then may be deleted. Undefined:
   *   nothing may be deleted.
   */
  confirm(hasExpired: (now: number) => boolean): number | undefined {
    const now = Date.now();
    const foundAt = this.#kv.get<number>(FOUND_AT);
    if (foundAt === undefined || foundAt > now) {
      if (hasExpired(now)) this.#kv.put(FOUND_AT, now);
      else if (foundAt !== undefined) this.#kv.delete(FOUND_AT);
      return undefined;
    }
    if (now - foundAt < CONFIRM_MS) return undefined;
    this.#kv.delete(FOUND_AT);
    return foundAt;
  }
}
