/** Cursors: positions in a room's log, opaque to clients. See PROTOCOL.md, "Terminology" and "Subscribing". */

/**
 * A position: the log (`epoch`) and the offset in it.
 *
 * `offset` increases within a log; 0 is before the first notification.
 */
export interface Cursor {
  epoch: string;
  offset: number;
}

const CURSOR = /^([A-Za-z0-9]{1,32})-([0-9]{1,18})$/;

export function cursorText(cursor: Cursor): string {
  return `${cursor.epoch}-${cursor.offset}`;
}

/** Parse the output of {@link cursorText}; undefined if the text is not a cursor. */
export function parseCursor(text: string): Cursor | undefined {
  const match = CURSOR.exec(text);
  return match ? { epoch: match[1]!, offset: Number(match[2]) } : undefined;
}

/** Return the later of two positions of one log. */
export function furthest(one: Cursor, other: Cursor): Cursor {
  return one.offset > other.offset ? one : other;
}
