/** The records of jobs, as the server folds them: `synap_realtime/protocol/job_state.py`. */
import { number, text, type JobRecord } from "../tracker.js";
import type { Delivered } from "../protocol.js";

/** After these, no event of a run has an effect. */
const isEnding = (status: unknown) => /^(completed|failed|cancelled)$/.test(status as string);

/** A notification with the member `job`. */
export interface JobNotification extends Delivered {
  job: { event: string; name: string; runId: string; userId?: string };
}

/** The id of a job's record in a room. */
export const idOf = ({ requestId, runId }: { requestId?: string | undefined; runId: string }) =>
  requestId && [...requestId].length <= 200 ? requestId : runId;

/**
 * Return the record after a notification. See PROTOCOL.md, "Job state".
 *
 * @param past the runs that were superseded: their events have no effect.
 */
export function foldJob(record: JobRecord | undefined, notification: JobNotification, past: Set<string>): JobRecord | undefined {
  const { job, data, timestamp: at, requestId } = notification;
  const { event, name, runId, userId } = job;
  if (past.has(runId)) return record;
  const isFirst = record?.runId !== runId;
  if (!isFirst && isEnding(record?.status)) return record;
  if (isFirst && record) past.add(record.runId);
  const before: JobRecord = isFirst || !record ? { type: name, status: "running", runId, attempt: 1, truncated: false, startedAt: at } : record;
  const known = { ...before, userId: userId ?? before.userId, requestId: requestId ?? before.requestId };
  if (isEnding(event)) {
    const ended = { ...known, status: event as JobRecord["status"], updatedAt: at, endedAt: at };
    if (event !== "completed") return { ...ended, error: text(data.error) };
    return { ...ended, progress: 1, result: data, error: undefined, truncated: data.truncated === true };
  }
  const status = event === "retrying" ? event : "running";
  const attempt = number(data.attempt) || before.attempt;
  // An event of an earlier attempt, or the announcement of one that has begun.
  if (attempt < before.attempt || (status === "retrying" && !isFirst && attempt === before.attempt && before.status === "running")) return known;
  const kept = attempt > before.attempt || status === "retrying" ? undefined : before;
  const progress = number(data.progress) ?? 2;
  return {
    ...known,
    status,
    attempt,
    maxAttempts: number(data.maxAttempts) || before.maxAttempts,
    progress: progress <= 1 ? progress : kept?.progress,
    label: text(data.label) || kept?.label,
    error: text(data.error) || before.error,
    updatedAt: at,
  };
}
