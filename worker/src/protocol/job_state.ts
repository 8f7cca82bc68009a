/**
 * The member `job` of a notification, and the record of a job that such notifications change. See PROTOCOL.md,
 * "Job state". The order of the log decides, and no clock.
 *
 * The Python server has the same rules in `protocol/job_state.py`, and tests/protocol/job_vectors.json checks both.
 */

import { lengthOf } from "./codepoints";
import { numberOf } from "./folding";
import { InvalidNotificationError, isObject } from "./invalid";

/** How many earlier runs of a request are remembered, so that their events stay without effect. */
const MAX_PAST_RUNS = 16;
/** The longest name of a job type, and the longest id of a run, in characters. */
export const MAX_NAME_LENGTH = 128;
/** The longest id of a user, and of a request that names a job, in characters. */
const MAX_ID_LENGTH = 200;

const ENDINGS = new Set<string>(["completed", "failed", "cancelled"]);
const STATUS_OF = new Map<string, JobStatus>([
  ["started", "running"],
  ["progress", "running"],
  ["retrying", "retrying"],
  ["completed", "completed"],
  ["failed", "failed"],
  ["cancelled", "cancelled"],
]);

export type JobStatus = "running" | "retrying" | "completed" | "failed" | "cancelled";
export const STATUSES = new Set<string>(STATUS_OF.values());

/** What a notification with `job` says about a job. */
export interface JobEvent {
  event: string;
  /** The name of the job type. */
  name: string;
  runId: string;
  userId?: string;
  /** The notification's `requestId`, `timestamp` and `data`, which is not validated. */
  requestId?: string;
  at?: string;
  data: Record<string, unknown>;
  /** The member `job.attempt`, a fencing number as `fold.attempt`. */
  attempt?: number;
}

/** How the job of a request stands: its latest run. The members are those of PROTOCOL.md, "Job state". */
export interface JobRecord {
  type: string;
  status: JobStatus;
  runId: string;
  userId?: string;
  requestId?: string;
  progress?: number;
  label?: string;
  attempt: number;
  maxAttempts?: number;
  result?: Record<string, unknown>;
  error?: string;
  truncated: boolean;
  stallAfterS?: number;
  startedAt?: string;
  updatedAt?: string;
  endedAt?: string;
  /** The ids of earlier runs, oldest first. Not for clients. */
  pastRuns: string[];
  /** The highest fencing number: an event with a lower one is late. Not for clients. */
  fence: number;
}

/**
 * Validate the decoded member `job` of a notification.
 *
 * @throws InvalidNotificationError it names the first invalid member, as `job.event`.
 */
export function checkJob(value: unknown): void {
  if (!isObject(value)) {
    throw new InvalidNotificationError("job", "expected a JSON object with event, name and runId");
  }
  const { event, name, runId, userId, attempt } = value;
  if (typeof event !== "string" || !STATUS_OF.has(event)) {
    throw new InvalidNotificationError("job.event", `expected one of ${[...STATUS_OF.keys()].join(", ")}`);
  }
  checkText("job.name", name, MAX_NAME_LENGTH);
  checkText("job.runId", runId, MAX_NAME_LENGTH);
  if (userId !== undefined && userId !== null) checkText("job.userId", userId, MAX_ID_LENGTH);
  numberOf("job.attempt", attempt);
}

function checkText(field: string, value: unknown, most: number): void {
  if (typeof value === "string" && value !== "" && lengthOf(value) <= most) return;
  throw new InvalidNotificationError(field, `expected a string of 1 to ${most} characters`);
}

/** Return what a notification says about a job, after it was validated. */
export function jobEventOf(wire: Record<string, unknown>): JobEvent {
  const { event, name, runId, userId } = wire["job"] as Record<string, string>;
  const attempt = numberOf("job.attempt", (wire["job"] as Record<string, unknown>)["attempt"]);
  const { requestId, timestamp } = wire as Record<string, string>;
  return known({
    event: event!, name: name!, runId: runId!, userId: userId ?? undefined, requestId, at: timestamp,
    data: wire["data"] as Record<string, unknown>, attempt,
  }) as unknown as JobEvent;
}

/** Return the id of the record of a job in a room: that of the request, else that of the run. */
export function jobIdOf({ requestId, runId }: { requestId?: string; runId: string }): string {
  return requestId !== undefined && requestId !== "" && lengthOf(requestId) <= MAX_ID_LENGTH ? requestId : runId;
}

/** Whether it is the last event of its run. */
export function isEnding({ event }: JobEvent): boolean {
  return ENDINGS.has(event);
}

export function hasEnded({ status }: JobRecord): boolean {
  return ENDINGS.has(status);
}

/** Return the fold key of the text of a run. */
export function textKey(runId: string): string {
  return `${runId}:text`;
}

/** Return the fold keys of a run, which end with it. */
export function keysOfRun(runId: string): string[] {
  return [textKey(runId), `${runId}:progress`];
}

/** Return the id of the run that a fold key belongs to; undefined if it belongs to none. */
export function runOfKey(key: string): string | undefined {
  return /^(.*):(?:text|progress)$/.exec(key)?.[1];
}

/** Return a record as clients receive it. */
export function jobToWire({ pastRuns: _, fence: __, ...record }: JobRecord, text?: string): object {
  return known({ ...record, text });
}

/**
 * Return the record after an event; the same object if the event has no effect.
 *
 * - A run that is not known begins the record anew. From then on, events of the run before it have no effect.
 * - After its ending, no event of a run has an effect. So the first ending counts.
 * - An event of an earlier attempt has no effect, unless it is an ending. `job.attempt` decides; `data.attempt` if there
 *   is none.
 * - An attempt that is announced (`retrying`) or begins has neither progress nor label.
 * - Each member of `data` that is not valid counts as absent.
 */
export function foldJob(record: JobRecord | undefined, event: JobEvent): JobRecord {
  const isFirst = record?.runId !== event.runId;
  let present: JobRecord;
  if (record === undefined || isFirst) {
    const pastRuns = record === undefined ? [] : [...record.pastRuns, record.runId].slice(-MAX_PAST_RUNS);
    if (record?.pastRuns.includes(event.runId) === true) return record;
    present = known({
      type: event.name, status: "running", runId: event.runId, attempt: 1, truncated: false, startedAt: event.at,
      pastRuns, fence: 0,
    });
  } else {
    if (hasEnded(record)) return record;
    present = record;
  }
  const changed = apply(present, event, isFirst);
  if (changed === undefined) return present;
  return known({
    ...changed,
    userId: event.userId || present.userId,
    requestId: event.requestId || present.requestId,
    updatedAt: event.at,
  });
}

/** Return what an event changes, beside whose job it is; undefined if it has no effect. */
function apply(record: JobRecord, event: JobEvent, isFirst: boolean): JobRecord | undefined {
  const status = STATUS_OF.get(event.event)!;
  const data = ownOf(event.data);
  if (ENDINGS.has(status)) {
    const ended = { ...record, status, endedAt: event.at, stallAfterS: undefined };
    if (status !== "completed") return { ...ended, error: textOf(data["error"]) } as unknown as JobRecord;
    const truncated = data["truncated"] === true;
    return { ...ended, progress: 1, result: event.data, error: undefined, truncated } as unknown as JobRecord;
  }
  const attempt = countOf(data["attempt"]);
  const fence = event.attempt ?? attempt ?? record.fence;
  if (fence < record.fence) return undefined;
  const isRetrying = status === "retrying";
  if (isRetrying && fence === record.fence && record.status === "running" && !isFirst) {
    return undefined; // the attempt that it announces has begun
  }
  const isNew = isRetrying || (event.event === "started" && fence > record.fence);
  return {
    ...record,
    status,
    fence,
    attempt: attempt ?? record.attempt,
    maxAttempts: countOf(data["maxAttempts"]) ?? record.maxAttempts,
    progress: fractionOf(data["progress"]) ?? (isNew ? undefined : record.progress),
    label: textOf(data["label"]) || (isNew ? undefined : record.label),
    error: textOf(data["error"]) || record.error,
    stallAfterS: secondsOf(data["stallAfterS"]),
  } as unknown as JobRecord;
}

/** Return an object whose missing members are undefined, whatever the prototype has. */
function ownOf(data: Record<string, unknown>): Record<string, unknown> {
  return Object.assign(Object.create(null) as object, data) as Record<string, unknown>;
}

function textOf(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}

/** Return a number from 1, as attempts are. */
function countOf(value: unknown): number | undefined {
  return typeof value === "number" && Number.isInteger(value) && value > 0 && value < 2 ** 31 ? value : undefined;
}

function fractionOf(value: unknown): number | undefined {
  return typeof value === "number" && value >= 0 && value <= 1 ? value : undefined;
}

function secondsOf(value: unknown): number | undefined {
  return typeof value === "number" && value > 0 && value < 2 ** 31 ? value : undefined;
}

/** Remove the members that are undefined. */
function known<Given extends object>(given: Given): JobRecord {
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) as unknown as JobRecord;
}
