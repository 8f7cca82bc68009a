/** The state of a job, derived from its notifications. See PROTOCOL.md, "Jobs". */
import type { Delivered } from "./protocol.js";

export interface JobState<Result = Record<string, unknown>> {
  /**
   * `idle` before the first notification; `stalled` when no notification arrived for longer than the job
   * announced; `success` and `error` when it is finished. `useJob` adds `disconnected`: the server rejected the
   * connection for good, so the state of the job is unknown.
   */
  status: "idle" | "pending" | "retrying" | "success" | "error" | "stalled" | "disconnected";
  /** From 0 to 1, if the job reports it. */
  progress?: number | undefined;
  /** The current step, as text for the user. */
  label?: string | undefined;
  /** The number of the attempt that runs or will run, from 1. */
  attempt: number;
  maxAttempts?: number | undefined;
  /** The `data` of the notification of success. */
  result?: Result | undefined;
  /** Why the last attempt, or the job, failed. */
  error?: string | undefined;
  /** The text that the job has written so far, up to the first missing piece. */
  text: string;
  /**
   * False when a piece of the text is missing: this client connected late, or was offline for longer than the
   * server's retention. The result of the job contains the whole text.
   */
  isTextComplete: boolean;
}

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
  stallAfterS?: number;
  /** RFC 3339. */
  startedAt?: string | undefined;
  updatedAt?: string | undefined;
  endedAt?: string | undefined;
}

export const IDLE: JobState<never> = { status: "idle", attempt: 1, text: "", isTextComplete: true };

export const text = (value: unknown) => (typeof value === "string" ? value : undefined);
/** A count or a duration. JSON can also hold 1e999, which is parsed as Infinity. */
export const number = (value: unknown) =>
  typeof value === "number" && value >= 0 && value <= Number.MAX_SAFE_INTEGER ? value : undefined;

/** The text of a job, if its result has it. */
const textOf = (result: Record<string, unknown>) => text(result.response) ?? text(result.text) ?? text(result.result);

const STATUSES: Record<string, JobState["status"]> = {
  retrying: "retrying", completed: "success", failed: "error", cancelled: "error",
};

/** Reduces the notifications of one job to its state. It has no clock: the caller detects stalls. */
export class JobTracker<Result = Record<string, unknown>> {
  state: JobState<Result> = IDLE;
  /** Milliseconds after the last notification until the job counts as stalled; undefined: never. */
  stallAfterMs: number | undefined;
  /** The run, and its attempt, that wrote the text. */
  private run: unknown;
  private attempt = 0;
  /** Where the next piece begins: in code points (`fold.offset`), or in pieces (`index`). NaN: one is missing. */
  private next = 0;

  get isFinished(): boolean {
    return this.state.status === "success" || this.state.status === "error";
  }

  /** Apply the next notification. After the terminal notification, all are ignored. */
  apply({ type, status, data, fold }: Delivered): void {
    if (this.isFinished) return;
    const { state } = this;
    const event = type.slice(type.lastIndexOf(".") + 1);
    if (status === "success" || status === "error") {
      // An incomplete text is replaced by the whole one, which is a member of the result.
      const whole = state.isTextComplete ? undefined : textOf(data);
      const found = whole === undefined ? {} : { text: whole, isTextComplete: true };
      const end =
        status === "success"
          ? { result: data as Result, error: undefined, progress: 1, ...found }
          : { error: text(data.error) };
      this.stallAfterMs = undefined;
      this.state = { ...state, status, ...end };
    } else if (event === "delta") {
      this.state = { ...state, status: "pending", ...this.write(data, number(fold?.offset)) };
    } else {
      const isRetrying = event === "retrying"; // discard the progress of the failed attempt
      this.stallAfterMs = (number(data.stallAfterS) ?? 0) * 1000 || undefined;
      this.state = {
        ...state,
        status: isRetrying ? "retrying" : "pending",
        attempt: number(data.attempt) || state.attempt,
        maxAttempts: number(data.maxAttempts) ?? state.maxAttempts,
        progress: isRetrying ? undefined : (number(data.progress) ?? state.progress),
        label: isRetrying ? undefined : text(data.label) || state.label,
        error: text(data.error) || state.error,
      };
    }
  }

  /** Continue from what the server has kept: `GET /jobs/{requestId}`. */
  restore(job: JobRecord<Result>): void {
    if (this.isFinished) return;
    const { status, result, attempt, runId } = job;
    const written = job.text ?? (status === "completed" ? textOf(result ?? {}) : undefined) ?? "";
    this.run = runId;
    this.attempt = attempt;
    this.next = [...written].length;
    this.stallAfterMs = (job.stallAfterS ?? 0) * 1000 || undefined;
    this.state = {
      status: STATUSES[status] ?? "pending",
      progress: job.progress,
      label: job.label,
      attempt,
      maxAttempts: job.maxAttempts,
      result,
      error: job.error,
      text: written,
      isTextComplete: true,
    };
  }

  /** Handle a gap: pieces of the text may be missing. */
  gap(): void {
    if (!this.isFinished) this.state = { ...this.state, isTextComplete: false };
  }

  /** Append a piece. The text ends before the first missing piece, and is empty if its beginning is missing. */
  private write(data: Delivered["data"], folded: number | undefined): Pick<JobState, "text" | "isTextComplete"> {
    const { text: before, isTextComplete } = this.state;
    const offset = folded ?? number(data.offset);
    const place = offset ?? number(data.index);
    const attempt = number(data.attempt) ?? 1;
    const isSameRun = this.run === data.runId;
    // The server drops folded pieces of earlier attempts. (Inngest counts the attempts of each step.)
    const isLate = folded === undefined && isSameRun && attempt < this.attempt;
    if (isLate) return { text: before, isTextComplete };
    const isOther = !isSameRun || (folded === undefined && attempt !== this.attempt);
    this.run = data.runId;
    this.attempt = attempt;
    const isKnown = !isOther && place !== undefined && place < this.next; // at least a part of it
    // Place 0 restarts the text: each attempt writes it from the beginning.
    if (place === 0 || (!isOther && place === this.next) || (isKnown && place === offset)) {
      const piece = text(data.delta) ?? "";
      this.next = place! + (offset === undefined ? 1 : [...piece].length);
      return { text: (isKnown ? [...before].slice(0, place).join("") : place ? before : "") + piece, isTextComplete: true };
    }
    if (isKnown) return { text: before, isTextComplete }; // a duplicate
    this.next = NaN;
    return { text: isOther ? "" : before, isTextComplete: false };
  }

  /** Mark a running job as stalled. The next notification clears the mark. */
  markStalled(): void {
    const { status } = this.state;
    if (status === "pending" || status === "retrying") this.state = { ...this.state, status: "stalled" };
  }
}
