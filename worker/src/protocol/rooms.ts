/** Room ids and patterns. See PROTOCOL.md, "Terminology". */

const CHARACTER = "[A-Za-z0-9._~:@|=+\\-]";
const ROOM_PATTERN = `(?!synap_)[a-z][a-z0-9-]{0,31}_${CHARACTER}{1,200}`;
const ROOM = new RegExp(`^(?:${ROOM_PATTERN})$`);
const PATTERN = new RegExp(`^(?:${ROOM_PATTERN}|${CHARACTER}{0,200}\\*)$`);
const KEY = new RegExp(`^${CHARACTER}{1,200}$`);
const DEVICE = new RegExp(`^${CHARACTER}{1,64}$`);
const CHARACTERS = "A-Z a-z 0-9 . _ ~ : @ | = + -";

/** Return the problem of a room id; undefined if it is valid. */
export function problemWithRoom(text: string): string | undefined {
  if (ROOM.test(text)) return undefined;
  const [kind = "", key] = split(text);
  const lower = kind.toLowerCase();
  if (lower === "synap") return `the kind 'synap' is reserved; got ${shown(text)}`;
  if (key !== undefined && ROOM.test(`${lower}_${key}`)) {
    return `expected a kind in lowercase before '_'; got ${shown(text)}`;
  }
  return `expected a kind, '_' and a key of 1 to 200 of ${CHARACTERS}, such as 'user_42'; got ${shown(text)}`;
}

/** Return the problem of the id of a user or a request, which is the key of a room; undefined if it is valid. */
export function problemWithKey(text: string): string | undefined {
  return KEY.test(text) ? undefined : `expected 1 to 200 of ${CHARACTERS}; got ${shown(text)}`;
}

/** Whether a text is a pattern of a token: a room, or a prefix followed by `*`. */
export function isPattern(text: string): boolean {
  return PATTERN.test(text);
}

/** Whether a room matches a pattern. Only a trailing `*` is special. */
export function matches(pattern: string, room: string): boolean {
  return pattern.endsWith("*") ? room.startsWith(pattern.slice(0, -1)) : room === pattern;
}

/** Return the id of the user of a user's room; undefined for a room of another kind. */
export function roomOwner(room: string): string | undefined {
  const [kind, key] = split(room);
  return kind === "user" ? key : undefined;
}

export function isRequestRoom(room: string): boolean {
  return room.startsWith("request_");
}

/** The problem of a text that is not a device's name. */
export const DEVICE_PROBLEM = `expected 1 to 64 of ${CHARACTERS}`;
/** The problem of a text that is not a pattern. */
export const PATTERN_PROBLEM = "expected a room id or its beginning and '*', such as 'request_*'";

/** Whether a value is a device's name. */
export function isDevice(name: unknown): name is string {
  return typeof name === "string" && DEVICE.test(name);
}

function split(text: string): [string, string | undefined] {
  const place = text.indexOf("_");
  return place < 0 ? [text, undefined] : [text.slice(0, place), text.slice(place + 1)];
}

/** A JWT or a part of one. */
const JWT = /(?<![A-Za-z0-9-])e(?:y[A-L]|w[k-r0-3])[\w-]{5,}(?:\.[\w-]*){0,4}/g;
/** A text as long as a secret or a key, and longer than usual ids. */
const LONG = /[\w+=~@-]{32,}/g;
const UUID = /[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}/gi;

/** Replace tokens and keys that were sent in place of an id. */
export function withoutCredentials(text: string): string {
  return text
    .replace(JWT, "…")
    .replace(LONG, (run) => (run.replace(UUID, "").length < 32 ? run : "…"));
}

/** Quote a text, shortened for an error message. */
function shown(text: string): string {
  const quoted = `'${JSON.stringify(withoutCredentials(text)).slice(1, -1)}'`;
  return quoted.length <= 60 ? quoted : `${quoted.slice(0, 57)}...`;
}
