/**
 * The numbers of pieces for one connection. See PROTOCOL.md, "Folding".
 *
 * A client of version 1 counts pieces by `data.index`: it receives a replayed text as the piece with the index 0, and
 * those that follow as 1, 2, … So a connection stores how many entries of the text had been delivered at its replay.
 */

import type { Entry } from "../stores/entries";
import { withIndex } from "../stores/folds";
import type { Connection } from "./connection";

/** Start to count the pieces of a text with an entry that is replayed as the piece with this index. */
export function countFrom({ attachment }: Connection, { piece }: Entry, index = 0): void {
  if (piece === undefined) return;
  const { [piece.textId]: _, ...numbers } = attachment.numbers ?? {};
  if (piece.index !== undefined && !piece.isClosed) numbers[piece.textId] = piece.deliveries - index;
  attachment.numbers = numbers;
}

/** Return a live entry as the client numbers it. */
export function numbered({ attachment }: Connection, entry: Entry): string {
  const { text, piece } = entry;
  const start = piece === undefined ? undefined : attachment.numbers?.[piece.textId];
  if (piece?.index === undefined || start === undefined) return text;
  if (piece.isClosed) delete attachment.numbers![piece.textId];
  const index = piece.deliveries - start;
  return index === piece.index ? text : withNumber(entry, index);
}

/** The texts of an entry by number, because many connections number it equally. */
const numberedTexts = new WeakMap<Entry, Map<number, string>>();

function withNumber(entry: Entry, index: number): string {
  const texts = numberedTexts.get(entry) ?? new Map<number, string>();
  numberedTexts.set(entry, texts);
  let text = texts.get(index);
  if (text === undefined) texts.set(index, (text = withIndex(entry.text, index)));
  return text;
}
