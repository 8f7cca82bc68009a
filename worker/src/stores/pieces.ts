/** The pieces of texts that one publish stores, joined for their delivery. See PROTOCOL.md, "Folding". */

import type { Cursor } from "../protocol/cursor";
import type { Entry, Publication } from "./entries";
import { entryOf } from "./entries";
import { indexOf, withOffset, withPiece } from "./folds";
import type { Key } from "./keys";

interface Write {
  cursor: Cursor;
  text: string;
  bytes: number;
  piece: string;
  /** The offset of the piece in the text. */
  start: number;
}

/** Joins pieces that follow each other in a text. Pieces of other texts may be between them. */
export class PieceJoiner {
  readonly #texts = new Map<Key, Write[]>();

  /** @param hasSubscribers whether anybody sees how pieces are numbered. */
  constructor(
    private readonly room: string,
    private readonly hasSubscribers: boolean,
  ) {}

  /** Add a piece that was applied to its key. */
  add(key: Key, { text, bytes, fold }: Publication, start: number, cursor: Cursor): void {
    const write = { cursor, text, bytes, piece: fold!.piece, start };
    const writes = this.#texts.get(key) ?? [];
    writes.push(write);
    this.#texts.delete(key); // to the end: the order is that of the last pieces
    this.#texts.set(key, writes);
  }

  /** Return the entries to deliver, and count them in their keys. */
  take(): Entry[] {
    const entries = [...this.#texts].map(([key, writes]) => this.#join(key, writes));
    this.#texts.clear();
    return entries;
  }

  #join(key: Key, writes: Write[]): Entry {
    const [first, last] = [writes[0]!, writes.at(-1)!];
    const published = indexOf(first.text);
    const isRenumbered = key.isRenumbered && key.lastIndex !== undefined && published !== undefined;
    const index = isRenumbered ? key.lastIndex! + 1 : published;
    key.deliveries++;
    key.lastIndex = this.hasSubscribers ? index : indexOf(last.text);
    key.isRenumbered = this.hasSubscribers && (key.isRenumbered || writes.length > 1);
    const isPublished = writes.length === 1 && index === published;
    const piece = writes.map((write) => write.piece).join("");
    const text = isPublished ? withOffset(last.text, first.start) : withPiece(last.text, piece, first.start, index);
    const bytes = isPublished ? last.bytes + text.length - last.text.length : new TextEncoder().encode(text).length;
    const { id: textId, length, deliveries, isClosed } = key;
    return { ...entryOf(this.room, last.cursor, text, bytes), piece: { textId, length, deliveries, index, isClosed } };
  }
}
