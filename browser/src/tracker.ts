/** The state of a job for a page: its record, its text, and whether it is stalled. See PROTOCOL.md, "Jobs". */
import type { Delivered } from "./protocol.js";
import { ENDINGS, eventOf, foldJob, number, text, type Fences, type JobRecord } from "./records.js";

/** The other members are those of the record, as far as the server's snapshot or the notifications have them. */
export interface JobState<Result = Record<string, unknown>> extends Partial<Omit<JobRecord, "status" | "text" | "attempt" | "result">> {
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
const textOf = (result?: Record<string, unknown>) =>
  text(result?.response) ?? text(result?.text) ?? text(result?.result);

/** Reduces the notifications of one job to its state. It has no clock: the caller detects stalls. */
export class JobTracker<Result = Record<string, unknown>> {
  state: JobState<Result> = IDLE;
  #record: JobRecord | undefined;
  readonly #fences: Fences = new Map();
  /** The run, and its attempt, that wrote the text. */
  #run: unknown;
  #attempt = 0;
  /** Code points of the text. */
  #length = 0;

  get isFinished(): boolean {
    return !!ENDINGS[this.#record?.status!];
  }
  /** Milliseconds after the last notification until the job counts as stalled; undefined: never. */
  get stallAfterMs(): number | undefined {
    return this.#record?.stallAfterS! * 1000 || undefined;
  }

  /** Apply the next notification. After the terminal notification, all are ignored. */
  apply(notification: Delivered): void {
    if (this.isFinished) return;
    if (eventOf(notification.type) === "delta") return this.#write(notification);
    const record = foldJob(this.#record, notification, this.#fences);
    // An incomplete text is replaced by the whole one, which is a member of the result.
    const { text, isTextComplete } = this.state;
    this.#show(record, isTextComplete ? text : textOf(record.result));
  }

  /** Continue from what the server has kept: `GET /jobs/{requestId}`. */
  restore({ text: written, ...job }: JobRecord<Result>): void {
    if (this.isFinished) return;
    written ??= textOf(job.result as never) ?? "";
    this.#run = job.runId;
    this.#attempt = job.attempt;
    this.#length = [...written].length;
    this.#show(job as JobRecord, written);
  }

  /** Handle a gap: pieces of the text may be missing. */
  gap(): void {
    if (!this.isFinished) this.#set({ isTextComplete: false });
  }

  /** Mark a running job as stalled. The next notification clears the mark. */
  markStalled(): void {
    if (!this.isFinished && this.state.status !== "idle") this.#set({ status: "stalled" });
  }

  #set(change: Partial<JobState<Result>>): void {
    this.state = { ...this.state, ...change };
  }

  /** @param whole the text, if all of it is known. */
  #show(record: JobRecord, whole?: string): void {
    this.#record = record;
    const status = ENDINGS[record.status] ?? (record.status.replace("running", "pending") as "pending" | "retrying");
    this.state = { ...(record as JobRecord<never>), status, text: whole ?? this.state.text, isTextComplete: whole !== undefined };
  }

  /** Place a piece. The text ends before the first missing piece, and is empty if its beginning is missing. */
  #write({ data, fold }: Delivered): void {
    const { runId } = data;
    const attempt = number(data.attempt) ?? 1;
    const offset = number(fold ? fold.offset : data.offset)!;
    let written = this.state.text;
    // The server drops folded pieces of earlier attempts. (Inngest counts the attempts of each step.)
    if (this.#run !== runId || (!fold && this.#attempt !== attempt)) {
      if (this.#run === runId && attempt < this.#attempt) return;
      this.#length = 0;
      written = "";
    }
    this.#run = runId;
    this.#attempt = attempt;
    const isTextComplete = offset <= this.#length;
    if (isTextComplete) {
      const piece = text(data.delta) ?? "";
      if (offset < this.#length) written = [...written].slice(0, offset).join("");
      written += piece;
      this.#length = offset + [...piece].length;
    }
    this.#set({ status: "pending", text: written, isTextComplete });
  }
}
