/** The cursor of a subscription in a storage, for the next page. */
import { isCursor, type CursorStorage } from "./options.js";
import { createTimer } from "./timer.js";

const SAVE_EVERY_MS = 1_000;

/**
 * A storage may be full or blocked, and may throw or reject: then the cursor is not persisted.
 *
 * @param cursor returns the current cursor.
 */
export function createPersistence(persist: boolean | CursorStorage | undefined, key: string, cursor: () => string | undefined) {
  const timer = createTimer();
  let storage: CursorStorage | undefined;
  try {
    storage = persist === true ? (globalThis as { localStorage?: CursorStorage }).localStorage : persist || undefined;
  } catch {}
  const save = async () => {
    timer.stop();
    try {
      const value = cursor();
      if (value) await storage?.setItem(key, value);
    } catch {}
  };
  return {
    /** Return the stored cursor; undefined if there is none. @throws what the storage throws. */
    load: async () => {
      const found = await storage?.getItem(key);
      return isCursor(found) ? found : undefined;
    },
    save,
    saveSoon: () => storage && timer.ensure(SAVE_EVERY_MS, save),
  };
}
