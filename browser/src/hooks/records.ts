/** The records of jobs, as the server folds them: `synap_realtime/protocol/job_state.py`. */
import { number, text, type JobRecord } from "../tracker.js";
import type { Delivered } from "../protocol.js";

/** After these, no event of a run has an effect. */
const isEnding = (status: unknown) => /^(completed|failed|cancelled)$/.test(status as string);

/** A notification with the member `job`. */
export interface JobNotification extends Delivered {
  job: { event: string; name: string; runId: string; userId?: string; attempt?: number };
}

/** The id of a job's record in a room. */
export const idOf = ({ requestId, runId }: { requestId?: string | undefined; runId: string }) =>
  requestId && [...requestId].length <= 200 ? requestId : runId;

/**
 * Return the record after a notification. See PROTOCOL.md, "Job state".
 *
 * @param fences the highest fencing number of each run; Infinity: another run has superseded it.
 */
export function foldJob(record: JobRecord | undefined, notification: JobNotification, fences: Map<string, number>): JobRecord | undefined {
  const { job, data, timestamp: at, requestId } = notification;
  const { event, name, runId, userId } = job;
  if (fences.get(runId) === Infinity) return record;
  const isFirst = record?.runId !== runId;
  if (!isFirst && isEnding(record?.status)) return record;
  if (isFirst && record) fences.set(record.runId, Infinity);
  const before: JobRecord = isFirst || !record ? { type: name, status: "running", runId, attempt: 1, truncated: false, startedAt: at } : record;
  const known = { ...before, userId: userId ?? before.userId, requestId: requestId ?? before.requestId, updatedAt: at };
  if (isEnding(event)) {
    const ended = { ...known, status: event as JobRecord["status"], endedAt: at };
    if (event !== "completed") return { ...ended, error: text(data.error) };
    return { ...ended, progress: 1, result: data, error: undefined, truncated: data.truncated === true };
  }
  const isRetrying = event === "retrying";
  const attempt = count(data.attempt);
  const last = fences.get(runId) ?? (isFirst || job.attempt !== undefined ? 0 : before.attempt);
  const fence = job.attempt ?? attempt ?? last;
  // An event of an earlier attempt, or the announcement of one that has begun.
  if (fence < last || (isRetrying && !isFirst && fence === last && before.status === "running")) return record;
  fences.set(runId, fence);
  const kept = isRetrying || (event === "started" && fence > last) ? undefined : before;
  const progress = number(data.progress) ?? 2;
  return {
    ...known,
    status: isRetrying ? "retrying" : "running",
    attempt: attempt ?? before.attempt,
    maxAttempts: count(data.maxAttempts) ?? before.maxAttempts,
    progress: progress <= 1 ? progress : kept?.progress,
    label: text(data.label) || kept?.label,
    error: text(data.error) || before.error,
  };
}

/** An attempt, from 1. */
const count = (value: unknown) => (Number.isInteger(value) && (value as number) > 0 && (value as number) < 2 ** 31 ? (value as number) : undefined);
