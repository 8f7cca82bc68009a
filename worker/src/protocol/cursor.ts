/** Positions in a room's log, opaque to clients. See PROTOCOL.md, "Words" and "Subscribing". */

/**
 * A position: which log, and how far in it.
 *
 * `offset` grows within a room; 0 is before the first notification.
 */
export interface Cursor {
  epoch: string;
  offset: number;
}

const CURSOR = /^([A-Za-z0-9]{1,32})-([0-9]{1,18})$/;

export function cursorText(cursor: Cursor): string {
  return `${cursor.epoch}-${cursor.offset}`;
}

/** What {@link cursorText} wrote; undefined: it was not written by a server of ours. */
export function parseCursor(text: string): Cursor | undefined {
  const match = CURSOR.exec(text);
  return match ? { epoch: match[1]!, offset: Number(match[2]) } : undefined;
}
