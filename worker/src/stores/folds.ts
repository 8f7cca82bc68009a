/**
 * What a room does with notifications that have `fold`: the rules, without storage. See PROTOCOL.md, "Folding".
 *
 * The Python server has the same rules in `server/stores/folds.py`.
 */

import { sliceOf } from "../protocol/codepoints";
import { parseStored } from "../protocol/json";
import { MAX_ATTEMPT, type Fold, type Mode } from "../protocol/folding";

/**
 * The largest folded notification, in bytes of UTF-8 JSON without `room` and `cursor`. With them it is at most 1 MiB,
 * which is the largest message that clients read.
 */
const MAX_FOLDED_BYTES = 1024 * 1024 - 1024;

/**
 * Most open keys of a room. For another one, the key that is idle longest is closed, if that is {@link IDLE_KEY_S};
 * else the result is {@link TOO_MANY_KEYS}.
 */
export const MAX_OPEN_KEYS = 64;
export const IDLE_KEY_S = 600;

/** Why a write was not stored. It had no effect. */
export interface Conflict {
  /** As in PROTOCOL.md, "Errors". */
  code: string;
  details: string;
  /** Where the next piece has to begin; undefined if that is not the cause. */
  offset?: number;
  /** The attempt of the key; undefined if the key is not the cause. */
  attempt?: number;
}

export const TOO_MANY_KEYS: Conflict = {
  code: "too_many_keys",
  details: `fold.key: the room has ${MAX_OPEN_KEYS} open keys; close one with a final write`,
};

export const RUN_HAS_ENDED: Conflict = {
  code: "stale_attempt",
  details: "fold.key: the run that it belongs to has ended",
  attempt: MAX_ATTEMPT,
};

/**
 * A write that is to be stored. `begin`: it begins a new entry; that of a closed key of this name stays. `restart`:
 * it replaces the entry of the key and its text, because its attempt is higher. `continue`: it replaces the entry of
 * the key, and its piece continues the text.
 */
export interface Placement {
  effect: "begin" | "restart" | "continue";
  /** The offset of the piece in the text; 0 for `replace`. */
  offset: number;
  /** The length of the text afterwards in code points, and its size in bytes as part of a JSON string. */
  length: number;
  size: number;
  /** The size of the folded notification afterwards, in bytes. */
  bytes: number;
}

/** What is known of a key beside its text. A key that was closed keeps its last values. */
export interface KeyFields {
  readonly mode: Mode;
  readonly attempt: number;
  readonly length: number;
  readonly size: number;
  readonly isClosed: boolean;
}

/**
 * Return what a write does to its key; `repeated` if the piece is in the text already, where it belongs.
 *
 * @param key the key; undefined if the log has no entry of it.
 * @param bytes the size of the notification as JSON, without `fold.offset`.
 * @param read returns a part of the key's text, between two offsets in code points.
 */
export function placeWrite(
  key: KeyFields | undefined,
  fold: Fold,
  bytes: number,
  read: (start: number, end: number) => string,
): Placement | "repeated" | Conflict {
  let effect: Placement["effect"] = "begin";
  if (key !== undefined) {
    const { attempt, mode } = key;
    if (fold.attempt < attempt) {
      const details = `fold.attempt: got ${fold.attempt}, and the key has attempt ${attempt}`;
      return { code: "stale_attempt", details, attempt };
    }
    if (!key.isClosed) {
      if (fold.mode !== mode) {
        return { code: "fold_mode", details: `fold.mode: the key has mode '${mode}' until its final write`, attempt };
      }
      effect = fold.attempt === attempt ? "continue" : "restart";
    }
  }
  const [length, size] = key !== undefined && effect === "continue" ? [key.length, key.size] : [0, 0];
  if (fold.offset !== undefined && fold.offset !== length) {
    if (key !== undefined && fold.attempt === key.attempt && holdsPiece(key, fold, fold.offset, read)) return "repeated";
    const details = `fold.offset: got ${fold.offset}, and the text has ${length} code points`;
    return { code: "offset_mismatch", details, offset: length, attempt: key?.attempt ?? fold.attempt };
  }
  if (fold.mode === "replace") return { effect, offset: 0, length: 0, size: 0, bytes };
  const folded = bytes + size + ',"offset":0'.length;
  if (folded > MAX_FOLDED_BYTES) {
    return { code: "payload_too_large", details: `a folded notification has at most ${MAX_FOLDED_BYTES} bytes` };
  }
  return { effect, offset: length, length: length + fold.length, size: size + fold.size, bytes: folded };
}

function holdsPiece(
  key: KeyFields, fold: Fold, offset: number, read: (start: number, end: number) => string,
): boolean {
  const end = offset + fold.length;
  return key.mode === fold.mode && end <= key.length && read(offset, end) === fold.piece;
}

/** Return a notification as it is delivered live: `fold`, which is its last member, has the offset of its piece. */
export function withOffset(text: string, offset: number): string {
  return `${text.slice(0, -2)},"offset":${offset}}}`;
}

/**
 * Return a notification of the mode `append` with another text.
 *
 * @param text the notification as JSON.
 * @param offset the offset of the piece in the text of its key.
 * @param index the number of the piece, if it has one.
 */
export function withPiece(text: string, piece: string, offset: number, index: number | undefined): string {
  const wire = parseStored(text) as { data: Record<string, unknown>; fold: Record<string, unknown> };
  wire.data["delta"] = piece;
  if (index !== undefined && Object.hasOwn(wire.data, "index")) wire.data["index"] = index;
  wire.fold["offset"] = offset;
  return JSON.stringify(wire);
}

/** Return the rest of a whole text, from an offset in code points, as a piece. */
export function restOf(text: string, from: number, index: number | undefined): string {
  const { data } = parseStored(text) as { data: { delta: string } };
  return withPiece(text, sliceOf(data.delta, from, Infinity), from, index);
}

/** Return a piece with another number. */
export function withIndex(text: string, index: number): string {
  const wire = parseStored(text) as { data: Record<string, unknown> };
  if (Object.hasOwn(wire.data, "index")) wire.data["index"] = index;
  return JSON.stringify(wire);
}

/** Return the number of a piece; undefined if it has none. */
export function indexOf(text: string): number | undefined {
  const { data } = parseStored(text) as { data: Record<string, unknown> };
  const index = Object.hasOwn(data, "index") ? data["index"] : undefined;
  return typeof index === "number" && Number.isSafeInteger(index) ? index : undefined;
}
