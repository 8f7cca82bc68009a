/** The state of a job for a page: its record, its text, and whether it is stalled. See PROTOCOL.md, "Jobs". */
import type { Delivered } from "./protocol.js";
import { eventOf, foldJob, isEnding, number, text, type Fences, type JobRecord } from "./records.js";

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

export const IDLE: JobState<never> = { status: "idle", attempt: 1, text: "", isTextComplete: true };

/** The text of a job, if its result has it. */
const textOf = (result: unknown) => {
  const { response, text: written, result: whole } = (result ?? {}) as Record<string, unknown>;
  return text(response) ?? text(written) ?? text(whole);
};

const STATUSES: Record<string, JobState["status"]> = {
  retrying: "retrying", completed: "success", failed: "error", cancelled: "error",
};

/** Reduces the notifications of one job to its state. It has no clock: the caller detects stalls. */
export class JobTracker<Result = Record<string, unknown>> {
  state: JobState<Result> = IDLE;
  #record: JobRecord | undefined;
  readonly #fences: Fences = new Map();
  /** The run, and its attempt, that wrote the text. */
  #run: unknown;
  #attempt = 0;
  /** Where the next piece begins: in code points (`fold.offset`), or in pieces (`index`). NaN: one is missing. */
  #next = 0;

  get isFinished(): boolean {
    return isEnding(this.#record?.status);
  }
  /** Milliseconds after the last notification until the job counts as stalled; undefined: never. */
  get stallAfterMs(): number | undefined {
    return (this.#record?.stallAfterS ?? 0) * 1000 || undefined;
  }

  /** Apply the next notification. After the terminal notification, all are ignored. */
  apply(notification: Delivered): void {
    if (this.isFinished) return;
    if (eventOf(notification.type) === "delta") return this.#write(notification);
    this.#show(foldJob(this.#record, notification, this.#fences));
    // An incomplete text is replaced by the whole one, which is a member of the result.
    const whole = this.state.isTextComplete ? undefined : textOf(this.#record?.result);
    if (whole !== undefined) this.#set({ text: whole, isTextComplete: true });
  }

  /** Continue from what the server has kept: `GET /jobs/{requestId}`. */
  restore(job: JobRecord<Result>): void {
    if (this.isFinished) return;
    const written = job.text ?? textOf(job.result) ?? "";
    this.#run = job.runId;
    this.#attempt = job.attempt;
    this.#next = [...written].length;
    this.#set({ text: written, isTextComplete: true });
    this.#show(job as JobRecord);
  }

  /** Handle a gap: pieces of the text may be missing. */
  gap(): void {
    if (!this.isFinished) this.#set({ isTextComplete: false });
  }

  /** Mark a running job as stalled. The next notification clears the mark. */
  markStalled(): void {
    const { status } = this.state;
    if (status === "pending" || status === "retrying") this.#set({ status: "stalled" });
  }

  #set(change: Partial<JobState<Result>>): void {
    this.state = { ...this.state, ...change };
  }

  #show(record: JobRecord): void {
    const { status, progress, label, attempt, maxAttempts, result, error } = (this.#record = record);
    this.#set({ status: STATUSES[status] ?? "pending", progress, label, attempt, maxAttempts, result: result as Result, error });
  }

  /** Append a piece. The text ends before the first missing piece, and is empty if its beginning is missing. */
  #write({ data, fold }: Delivered): void {
    this.#set({ status: "pending" });
    let { text: written, isTextComplete } = this.state;
    const folded = number(fold?.offset);
    const offset = folded ?? number(data.offset);
    const place = offset ?? number(data.index) ?? NaN;
    const attempt = number(data.attempt) ?? 1;
    const isSameRun = this.#run === data.runId;
    // The server drops folded pieces of earlier attempts. (Inngest counts the attempts of each step.)
    if (!isSameRun || (folded === undefined && attempt !== this.#attempt)) {
      if (isSameRun && attempt < this.#attempt) return;
      this.#next = NaN;
      written = "";
    }
    this.#run = data.runId;
    this.#attempt = attempt;
    const isKnown = place < this.#next; // at least a part of it
    const continues = place === this.#next;
    // Place 0 restarts the text: each attempt writes it from the beginning.
    if (continues || place === 0 || (isKnown && place === offset)) {
      const piece = text(data.delta) ?? "";
      written = (continues ? written : [...written].slice(0, place).join("")) + piece;
      this.#next = place + (offset === undefined ? 1 : [...piece].length);
      isTextComplete = true;
    } else if (!isKnown) {
      this.#next = NaN;
      isTextComplete = false;
    } // else: a duplicate
    this.#set({ text: written, isTextComplete });
  }
}
