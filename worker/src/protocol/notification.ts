/** Validation of notifications. See PROTOCOL.md, "Notification". */

import { foldToWire, parseFold, type Fold } from "./folding";
import { InvalidNotificationError, isObject } from "./invalid";
import { checkJob } from "./job_state";

export const MAX_NOTIFICATION_BYTES = 256 * 1024;
export const MAX_BATCH_BYTES = 1024 * 1024;
export const MAX_BATCH_NOTIFICATIONS = 1000;
/** The size limit of a batch, with each notification counted once for each of its rooms. */
export const MAX_BATCH_FANOUT_BYTES = 16 * 1024 * 1024;

const RFC_3339 =
  /^([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?([Zz]|[+-][0-9]{2}:[0-9]{2})$/;
const STATUSES: unknown[] = ["pending", "success", "error"];

/** The known members of a notification. Others are kept, too. */
const KNOWN = new Set(["type", "data", "id", "requestId", "status", "timestamp", "room", "cursor", "fold", "job"]);

/** A valid notification. `text` is its JSON, without `room` and `cursor`. Its last member is `fold`, if it has one. */
export interface Checked {
  id: string;
  text: string;
  bytes: number;
  fold?: Fold;
  /** Whether it has the member `job`. */
  hasJob?: boolean;
}

/**
 * Validate a decoded JSON value, and add the missing `id` and `timestamp`.
 *
 * @param now milliseconds since 1970, for the default `timestamp`.
 * @throws InvalidNotificationError it names the first invalid member.
 */
export function checkNotification(value: unknown, now: number): Checked {
  if (!isObject(value)) {
    throw new InvalidNotificationError("notification", "expected a JSON object");
  }
  const type = nameOf(value, "type");
  if (type === undefined) throw new InvalidNotificationError("type", typeProblem(value, "type", "string"));
  if (type.startsWith("synap.")) {
    throw new InvalidNotificationError("type", "the prefix 'synap.' is reserved");
  }
  if (!isObject(value["data"])) throw new InvalidNotificationError("data", typeProblem(value, "data", "dictionary"));
  const id = nameOf(value, "id") ?? uuid7(now);
  const requestId = textOf(value, "requestId");
  const status = value["status"] ?? undefined;
  if (status !== undefined && !STATUSES.includes(status)) {
    throw new InvalidNotificationError("status", "Input should be 'pending', 'success' or 'error'");
  }
  const timestamp = textOf(value, "timestamp");
  const known: [string, unknown][] = [
    ["type", type],
    ["data", value["data"]],
    ["id", id],
    ["requestId", requestId],
    ["status", status],
    ["timestamp", timestamp === undefined ? new Date(now).toISOString() : toUtc(timestamp)],
  ];
  const job = Object.hasOwn(value, "job") ? (value["job"] ?? undefined) : undefined;
  if (job !== undefined) checkJob(job);
  const given = Object.hasOwn(value, "fold") ? (value["fold"] ?? undefined) : undefined;
  const fold = given === undefined ? undefined : parseFold(given, value["data"]);
  // An assignment to __proto__ would change the prototype, not add a member.
  const unknown = Object.entries(value).filter(([name]) => !KNOWN.has(name));
  const members = [...known.filter(([, each]) => each !== undefined), ...unknown];
  if (job !== undefined) members.push(["job", job]);
  if (fold !== undefined) members.push(["fold", foldToWire(fold)]);
  const text = JSON.stringify(Object.fromEntries(members));
  const bytes = new TextEncoder().encode(text).length;
  return { id, text, bytes, ...(fold === undefined ? {} : { fold }), ...(job === undefined ? {} : { hasJob: true }) };
}


/** Convert an RFC 3339 time to UTC with milliseconds and `Z`. */
function toUtc(text: string): string {
  const wrong = () =>
    new InvalidNotificationError(
      "timestamp",
      "expected an RFC 3339 time such as 2026-01-31T12:00:00.000Z",
    );
  const match = RFC_3339.exec(text);
  if (!match) throw wrong();
  const [year, month, day, hour, minute, second] = match.slice(1, 7).map(Number) as [
    number, number, number, number, number, number,
  ];
  const milliseconds = Number((match[7] ?? "").slice(0, 3).padEnd(3, "0"));
  const moment = new Date(0);
  moment.setUTCFullYear(year, month - 1, day);
  moment.setUTCHours(hour, minute, second, milliseconds);
  // Date normalizes an invalid day or hour, such as February 30, to a later one.
  const isReal =
    year > 0 && moment.getUTCMonth() === month - 1 && moment.getUTCDate() === day &&
    hour < 24 && minute < 60 && second < 60;
  const zone = match[8]!;
  const [zoneHours = 0, zoneMinutes = 0] = zone.length > 1 ? zone.slice(1).split(":").map(Number) : [];
  if (!isReal || zoneHours > 23 || zoneMinutes > 59) throw wrong();
  const ahead = (zone.startsWith("-") ? -1 : 1) * (zoneHours * 60 + zoneMinutes);
  const utc = new Date(moment.getTime() - ahead * 60_000).toISOString();
  if (!/^[0-9]{4}-/.test(utc) || utc.startsWith("0000")) throw wrong();
  return utc;
}

function textOf(value: Record<string, unknown>, name: string): string | undefined {
  const found = Object.hasOwn(value, name) ? value[name] : undefined;
  if (found === undefined || found === null) return undefined;
  if (typeof found !== "string") throw new InvalidNotificationError(name, typeProblem(value, name, "string"));
  return found;
}

function nameOf(value: Record<string, unknown>, name: string): string | undefined {
  const found = textOf(value, name);
  if (found === undefined) return undefined;
  const length = found.length > 256 ? found.length : [...found].length;
  if (length < 1) throw new InvalidNotificationError(name, "String should have at least 1 character");
  if (length > 128) throw new InvalidNotificationError(name, "String should have at most 128 characters");
  return found;
}

/** Return the problem of a member that is absent or of another type, in the words of the server's validator. */
function typeProblem(value: Record<string, unknown>, name: string, type: "string" | "dictionary"): string {
  return Object.hasOwn(value, name) ? `Input should be a valid ${type}` : "Field required";
}

/** Return a UUIDv7 (RFC 9562, section 5.7). Ids of one millisecond are monotonic (section 6.2, method 1). */
function uuid7(now: number): string {
  counter = now === counterOf ? counter + 1 : Math.floor(Math.random() * 2048);
  counterOf = now;
  const moment = now + Math.floor(counter / 4096);
  const random = crypto.getRandomValues(new Uint8Array(8));
  random[0] = (random[0]! & 0x3f) | 0x80;
  const hex = [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const time = moment.toString(16).padStart(12, "0");
  const count = (counter % 4096).toString(16).padStart(3, "0");
  return `${time.slice(0, 8)}-${time.slice(8)}-7${count}-${hex.slice(0, 4)}-${hex.slice(4)}`;
}

let counter = 0;
let counterOf = 0;
