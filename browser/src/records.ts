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

export const text = (value: unknown) => (typeof value === "string" ? value : undefined);
/** A count or a duration. JSON can also hold 1e999, which is parsed as Infinity. */
export const number = (value: unknown, max = Number.MAX_SAFE_INTEGER) =>
  typeof value === "number" && value >= 0 && value <= max ? value : undefined;
/** A number from 1, as attempts are. */
const count = (value: unknown) => (Number.isInteger(value) && number(value, 2 ** 31 - 1)) || undefined;

/** After these, no event of a run has an effect. */
export const isEnding = (status: unknown) => /^(completed|failed|cancelled)$/.test(status as string);

/** The id of a job's record in a room. */
export const idOf = ({ requestId, runId }: { requestId?: string | undefined; runId: string }) =>
  requestId && [...requestId].length <= 200 ? requestId : runId;

/** The last part of a notification's type. */
export const eventOf = (type: string) => type.slice(type.lastIndexOf(".") + 1);

const ENDINGS: Record<string, string> = { success: "completed", error: "failed" };

/**
 * Return the record after a notification. See PROTOCOL.md, "Job state".
 *
 * A notification without `job`, of a server that does not know it, is read by its type and status, and is never late.
 */
export function foldJob(record: JobRecord | undefined, notification: Delivered, fences: Fences): JobRecord {
  const { job, data, timestamp: at, requestId, type, status } = notification;
  const event = job?.event ?? ENDINGS[status!] ?? eventOf(type);
  const runId = (job ?? record ?? data).runId as string;
  if (record && fences.get(runId) === Infinity) return record;
  const isFirst = record?.runId !== runId;
  if (!isFirst && isEnding(record?.status)) return record!;
  if (isFirst && record) fences.set(record.runId, Infinity);
  const before: JobRecord =
    isFirst || !record ? { type: job?.name ?? type, status: "running", runId, attempt: 1, truncated: false, startedAt: at } : record;
  const known = { ...before, userId: job?.userId ?? before.userId, requestId: requestId ?? before.requestId, updatedAt: at, stallAfterS: undefined };
  if (isEnding(event)) {
    const ended = { ...known, status: event as JobRecord["status"], endedAt: at };
    if (event !== "completed") return { ...ended, error: text(data.error) };
    return { ...ended, progress: 1, result: data, error: undefined, truncated: data.truncated === true };
  }
  const isRetrying = event === "retrying";
  const attempt = count(data.attempt);
  const last = fences.get(runId) ?? (isFirst || job?.attempt !== undefined ? 0 : before.attempt);
  const fence = job?.attempt ?? attempt ?? last;
  if (job) {
    // An event of an earlier attempt, or the announcement of one that has begun.
    if (fence < last || (isRetrying && !isFirst && fence === last && before.status === "running")) return record!;
    fences.set(runId, fence);
  }
  const kept = isRetrying || (event === "started" && fence > last) ? undefined : before;
  return {
    ...known,
    status: isRetrying ? "retrying" : "running",
    attempt: attempt ?? before.attempt,
    maxAttempts: count(data.maxAttempts) ?? before.maxAttempts,
    progress: number(data.progress, 1) ?? kept?.progress,
    label: text(data.label) || kept?.label,
    error: text(data.error) || before.error,
    stallAfterS: number(data.stallAfterS, 2 ** 31 - 1) || undefined,
  };
}
