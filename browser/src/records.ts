/** The records of jobs, as the server folds them: `synap_realtime/protocol/job_state.py`. */
import type { Delivered } from "./protocol.js";

/** How a job stands, as the server keeps it. See PROTOCOL.md, "Job state". */
export interface JobRecord<Result = Record<string, unknown>> {
  /** The name of the job type. */
  type: string;
  status: "running" | "retrying" | "completed" | "failed" | "cancelled";
  runId: string;
  requestId?: string | undefined;
  userId?: string | undefined;
  /** From 0 to 1. */
  progress?: number | undefined;
  label?: string | undefined;
  attempt: number;
  maxAttempts?: number | undefined;
  result?: Result | undefined;
  error?: string | undefined;
  /** The text that the job has written. Lists of jobs do not have it. */
  text?: string | undefined;
  /** A part of the result is missing, because it was too large. */
  truncated?: boolean | undefined;
  /** How long the run may be silent, from `updatedAt`, before it is stalled. Absent: for any time. */
  stallAfterS?: number | undefined;
  /** RFC 3339. */
  startedAt?: string | undefined;
  updatedAt?: string | undefined;
  endedAt?: string | undefined;
}

/** Highest fencing numbers, by run. Infinity: another run has superseded it. */
export type Fences = Map<unknown, number>;

/** A text that is not empty. */
export const text = (value: unknown) => (typeof value === "string" && value) || undefined;
/** A count or a duration. JSON can also hold 1e999, which is parsed as Infinity. */
export const number = (value: unknown, max = 1e9) =>
  typeof value === "number" && value >= 0 && value <= max ? value : undefined;
/** A whole number from 1. */
const count = (value: any) => (value % 1 ? undefined : number(value) || undefined);

/** How to read the members of `data` that a record keeps: undefined if one is not valid. */
const MEMBERS: Record<string, (value: unknown) => unknown> = {
  attempt: count, maxAttempts: count, stallAfterS: number as typeof text, label: text, error: text,
  progress: (value) => number(value, 1),
};

/** The last statuses of a record, after which no event of the run has an effect, and what a page shows for them. */
export const ENDINGS: Readonly<Record<string, "success" | "error">> = {
  __proto__: null as never, // "constructor" is none
  completed: "success", failed: "error", cancelled: "error",
};

/** The last part of a notification's type. */
export const eventOf = (type: string) => type.split(".").pop()!;

const EVENTS: Record<string, string> = { success: "completed", error: "failed" };

/**
 * Return the record after a notification. See PROTOCOL.md, "Job state".
 *
 * A notification without `job`, of a server that does not know it, is read by its type and status, and is never late.
 * A record that begins with a notification has only what follows from it.
 */
export function foldJob(record: JobRecord | undefined, notification: Delivered, fences: Fences): JobRecord {
  const { job, data, timestamp, type, status } = notification;
  const event = job?.event ?? EVENTS[status!] ?? eventOf(type);
  const runId = (job ?? record ?? data).runId as string;
  const isRetrying = event === "retrying";
  let next = { ...record, stallAfterS: undefined } as JobRecord & Record<string, unknown>;
  if (record && record.runId === runId) {
    if (ENDINGS[record.status]) return record;
  } else {
    if (record && fences.get(runId) === Infinity) return record;
    if (record) fences.set(record.runId, Infinity);
    fences.set(runId, 0);
    next = { runId, attempt: 1 } as typeof next;
  }
  next.updatedAt = timestamp;
  if (ENDINGS[event]) {
    next.status = event as JobRecord["status"];
    next.endedAt = timestamp;
    if (event !== "completed") return { ...next, error: text(data.error) };
    return { ...next, progress: 1, result: data, error: undefined, truncated: data.truncated === true };
  }
  const given = job?.attempt;
  const last = fences.get(runId) ?? (given === undefined ? next.attempt : 0);
  const fence = given ?? count(data.attempt) ?? last;
  // An event of an earlier attempt, or the announcement of one that has begun.
  if (job && (fence < last || (isRetrying && fence === last && next.status === "running"))) return record!;
  if (job) fences.set(runId, fence);
  next.status = isRetrying ? event : "running";
  if (isRetrying || (event === "started" && fence > last)) next.progress = next.label = undefined;
  for (const name in MEMBERS) next[name] = MEMBERS[name]!(data[name]) ?? next[name];
  return next;
}
