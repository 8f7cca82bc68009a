/** The member `fold` of a notification. See PROTOCOL.md, "Folding". */

import { lengthOf } from "./codepoints";
import { InvalidNotificationError, isObject } from "./invalid";

const MAX_KEY_LENGTH = 128;
/** The highest attempt, and the highest offset. */
export const MAX_ATTEMPT = 2 ** 31 - 1;
const KEY = /^[ -~]{1,128}$/;
const MEMBERS = new Set(["key", "mode", "attempt", "offset", "final"]);

export type Mode = "append" | "replace";

/** How a notification is folded into the one that the log already has for its key. */
export interface Fold {
  key: string;
  mode: Mode;
  /** A fencing number: a lower one than the key has is rejected, and a higher one starts the key again. */
  attempt: number;
  /** The key is closed after this write. */
  final: boolean;
  /** How many code points of the text come before the piece; undefined: it is appended at the end. */
  offset?: number;
  /** For `append`, the piece of the text (`data.delta`), else empty; its length in code points. */
  piece: string;
  length: number;
  /** Bytes that the piece takes inside a JSON string. */
  size: number;
}

/**
 * Whether a repeated write is recognized by its id, and not by its offset alone. A final one is, because it may have
 * closed the key, and its text is a new one then.
 */
export function keepsId({ offset, final }: Fold): boolean {
  return offset === undefined || final;
}

/** Return the JSON object without `offset`, which the store decides and adds. */
export function foldToWire({ key, mode, attempt, final }: Fold): object {
  return { key, mode, attempt, ...(final ? { final } : {}) };
}

/**
 * Validate the decoded member `fold`. An optional member that is null counts as absent.
 *
 * @param data the notification's `data`, which has the piece of the text.
 * @throws InvalidNotificationError it names the first invalid member, as `fold.key`.
 */
export function parseFold(value: unknown, data: Record<string, unknown>): Fold {
  if (!isObject(value)) throw problem("fold", "expected a JSON object with key and mode");
  for (const name of Object.keys(value)) {
    if (!MEMBERS.has(name)) throw problem("fold", `unknown member ${quoted(name).slice(0, 60)}`);
  }
  const { key, mode } = value;
  if (typeof key !== "string" || !KEY.test(key)) {
    throw problem("fold.key", `expected 1 to ${MAX_KEY_LENGTH} printable ASCII characters`);
  }
  if (mode !== "append" && mode !== "replace") throw problem("fold.mode", "expected 'append' or 'replace'");
  const attempt = numberOf("fold.attempt", value["attempt"]) ?? 0;
  const offset = numberOf("fold.offset", value["offset"]);
  const final = value["final"] ?? false;
  if (typeof final !== "boolean") throw problem("fold.final", "expected true or false");
  const fold: Fold = { key, mode, attempt, final, piece: "", length: 0, size: 0 };
  if (mode === "replace") {
    if (offset !== undefined) throw problem("fold.offset", "not allowed with mode 'replace'");
    return fold;
  }
  const piece = Object.hasOwn(data, "delta") ? data["delta"] : undefined;
  if (typeof piece !== "string") throw problem("data.delta", "expected a string with fold.mode 'append'");
  return {
    ...fold,
    ...(offset === undefined ? {} : { offset }),
    piece,
    length: lengthOf(piece),
    size: jsonSize(piece),
  };
}

/** Return how many bytes a text takes inside a JSON string. */
export function jsonSize(text: string): number {
  return new TextEncoder().encode(JSON.stringify(text)).length - 2;
}

/** Validate an attempt or an offset. Null counts as absent. @throws InvalidNotificationError */
export function numberOf(field: string, value: unknown): number | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= MAX_ATTEMPT) {
    return value === 0 ? 0 : value; // not -0
  }
  throw problem(field, `expected an integer from 0 to ${MAX_ATTEMPT}`);
}

/** Return a name in quotes and ASCII, for an error message. */
function quoted(name: string): string {
  const escaped = name.replace(/[^ -&(-[\]-~]/gu, (found) => {
    const code = found.codePointAt(0)!;
    if (found === "'" || found === "\\") return `\\${found}`;
    return code < 256 ? `\\x${hex(code, 2)}` : code < 65536 ? `\\u${hex(code, 4)}` : `\\U${hex(code, 8)}`;
  });
  return `'${escaped}'`;
}

function hex(code: number, digits: number): string {
  return code.toString(16).padStart(digits, "0");
}

function problem(field: string, text: string): InvalidNotificationError {
  return new InvalidNotificationError(field, text);
}
