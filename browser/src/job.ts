/** How a job stands, from what was heard of it. See PROTOCOL.md, "Jobs". */
import type { Delivered } from "./protocol.js";

export interface JobState<Result = Record<string, unknown>> {
  /**
   * `idle` before anything was heard; `stalled` when it has been silent for longer than it said is normal;
   * `success` and `error` are its end. Of `useJob` alone, `disconnected`: the connection was refused for good, and
   * nothing more will be heard of the job, however it stands.
   */
  status: "idle" | "pending" | "retrying" | "success" | "error" | "stalled" | "disconnected";
  /** 0 to 1, if the job tells. */
  progress?: number | undefined;
  /** What it is doing, in the user's words. */
  label?: string | undefined;
  /** Which attempt runs, or will. */
  attempt: number;
  maxAttempts?: number | undefined;
  /** The `data` of its good end. */
  result?: Result | undefined;
  /** Why the last attempt failed, or why the job did. */
  error?: string | undefined;
  /** What it has written so far, from its beginning on: the part up to the first piece that is missing. */
  text: string;
  /**
   * False when a piece of the text is missing: this client came late, or was away for longer than the server
   * keeps what was published. The job's result brings the whole.
   */
  isTextComplete: boolean;
}

export const IDLE: JobState<never> = { status: "idle", attempt: 1, text: "", isTextComplete: true };

const text = (value: unknown) => (typeof value === "string" ? value : undefined);
const number = (value: unknown) => (typeof value === "number" && value >= 0 ? value : undefined);

/** What one job's notifications come to: without a clock. */
export class JobTracker<Result = Record<string, unknown>> {
  state: JobState<Result> = IDLE;
  /** So long is silence normal from the last notification on, in milliseconds. */
  stallAfterMs: number | undefined;
  /** Whose text it is: the run and its attempt. */
  private run: unknown;
  private attempt = 0;
  private nextIndex = 0;

  get isOver(): boolean {
    return this.state.status === "success" || this.state.status === "error";
  }

  /** Take the next notification; what comes after the end is ignored. */
  apply({ type, status, data }: Delivered): void {
    if (this.isOver) return;
    const { state } = this;
    const word = type.slice(type.lastIndexOf(".") + 1);
    if (status === "success" || status === "error") {
      // What the text lacks is in the result: what the job returned, or the member that has the whole text.
      const whole = state.isTextComplete ? undefined : (text(data.response) ?? text(data.text) ?? text(data.result));
      const found = whole === undefined ? {} : { text: whole, isTextComplete: true };
      const end =
        status === "success"
          ? { result: data as Result, error: undefined, progress: 1, ...found }
          : { error: text(data.error) };
      this.stallAfterMs = undefined;
      this.state = { ...state, status, ...end };
    } else if (word === "delta") {
      this.state = { ...state, status: "pending", ...this.write(data) };
    } else {
      const isRetrying = word === "retrying"; // what the failed attempt had shown is void
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

  /** Something was missed that the server no longer has: perhaps the rest of the text. */
  gap(): void {
    if (!this.isOver) this.state = { ...this.state, isTextComplete: false };
  }

  /** Add a piece. A text that lacks a piece is shown up to there, and one without its beginning is not shown. */
  private write(data: Delivered["data"]): Pick<JobState, "text" | "isTextComplete"> {
    const { text: before, isTextComplete } = this.state;
    const index = number(data.index);
    const attempt = number(data.attempt) ?? 1;
    const isSameRun = this.run === data.runId;
    if (isSameRun && attempt < this.attempt) return { text: before, isTextComplete }; // it is void
    const isOther = !isSameRun || attempt !== this.attempt;
    this.run = data.runId;
    this.attempt = attempt;
    if (index === 0 || (!isOther && index === this.nextIndex)) {
      this.nextIndex = index + 1;
      const piece = text(data.delta) ?? "";
      // Index 0 begins the text anew: an attempt writes it from the beginning.
      return { text: index === 0 ? piece : before + piece, isTextComplete: true };
    }
    if (!isOther && index !== undefined && index < this.nextIndex) return { text: before, isTextComplete }; // again
    this.nextIndex = NaN;
    return { text: isOther ? "" : before, isTextComplete: false };
  }

  /** It has been silent for too long. A later word takes that back. */
  markStalled(): void {
    const { status } = this.state;
    if (status === "pending" || status === "retrying") this.state = { ...this.state, status: "stalled" };
  }
}
