/** How a job stands, from what was heard of it. See PROTOCOL.md, "Jobs". */
import type { Delivered } from "./protocol.js";

export interface JobState<Result = Record<string, unknown>> {
  /**
   * `idle` before anything was heard; `stalled` when it has been silent for longer than it said is normal;
   * `success` and `error` are its end.
   */
  status: "idle" | "pending" | "retrying" | "success" | "error" | "stalled";
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
  /** What it has written so far. */
  text: string;
}

export const IDLE: JobState<never> = { status: "idle", attempt: 1, text: "" };

const text = (value: unknown) => (typeof value === "string" ? value : undefined);
const number = (value: unknown) => (typeof value === "number" && value >= 0 ? value : undefined);

/** What one job's notifications come to: without a clock. */
export class JobView<Result = Record<string, unknown>> {
  state: JobState<Result> = IDLE;
  /** So long is silence normal from the last notification on, in milliseconds. */
  stallAfterMs: number | undefined;

  get isOver(): boolean {
    return this.state.status === "success" || this.state.status === "error";
  }

  /** Take the next notification; what comes after the end is ignored. */
  hear({ type, status, data }: Delivered): void {
    if (this.isOver) return;
    const { state } = this;
    const word = type.slice(type.lastIndexOf(".") + 1);
    if (status === "success" || status === "error") {
      const end = status === "success" ? { result: data as Result, error: undefined } : { error: text(data.error) };
      this.stallAfterMs = undefined;
      this.state = { ...state, status, ...end };
    } else if (word === "delta") {
      // Index 0 begins the text anew: an attempt writes it from the beginning.
      const before = data.index === 0 ? "" : state.text;
      this.state = { ...state, status: "pending", text: before + (text(data.delta) ?? "") };
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

  /** It has been silent for too long. A later word takes that back. */
  stall(): void {
    const { status } = this.state;
    if (status === "pending" || status === "retrying") this.state = { ...this.state, status: "stalled" };
  }
}
