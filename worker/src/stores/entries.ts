/** What goes into a room's log, and what comes out of it. */

import type { Cursor } from "../protocol/cursor";
import { cursorText } from "../protocol/cursor";
import type { Fold } from "../protocol/folding";
import type { Conflict } from "./folds";

export interface Publication {
  id: string;
  /** The notification's JSON, without `room` and `cursor`. Its last member is `fold`, if it has one. */
  text: string;
  bytes: number;
  fold?: Fold;
  /** Whether it has the member `job`. */
  hasJob?: boolean;
}

export interface Entry {
  cursor: Cursor;
  /** The JSON that every subscriber receives. */
  text: string;
  bytes: number;
  /** For a piece of a text, and for the whole text in the log. */
  piece?: Piece;
}

/** A piece of the text of a key, for the numbers that clients of version 1 count. See rooms/numbers.ts. */
export interface Piece {
  /** The text: a key has another one after each final write, and with each attempt. */
  textId: number;
  /** The length of the text up to this piece, in code points. */
  length: number;
  /** How many entries of the text were delivered live, up to this one. */
  deliveries: number;
  /** The number that this entry has; undefined if pieces are not numbered. */
  index: number | undefined;
  isClosed: boolean;
}

/**
 * The result of a publish. For a duplicate, the result of the first one. For a piece of a text that is there already,
 * the present cursor of the folded notification, and a count of 0.
 */
export interface PublishResult {
  id: string;
  cursor: string;
  broadcastCount: number;
  duplicate: boolean;
  /** Why nothing was stored. The members before it mean nothing then. */
  conflict?: Conflict;
}

/** A page of the log, oldest first. `recovered` is false if there may be a gap after the position. */
export interface Page {
  entries: Entry[];
  recovered: boolean;
  more: boolean;
}

/** Add the room and the cursor to the JSON of a notification, and count its bytes. */
export function entryOf(room: string, cursor: Cursor, text: string, bytes: number): Entry {
  // Neither the room nor the cursor can contain a quote or a non-ASCII character.
  const full = `${text.slice(0, -1)},"room":"${room}","cursor":"${cursorText(cursor)}"}`;
  return { cursor, text: full, bytes: bytes + full.length - text.length };
}
