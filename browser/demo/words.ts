/** User-facing texts of notifications and jobs. */
import type { NotificationData } from "@synap/realtime";
import type { JobRecord, JobState, NotificationMessage } from "@synap/realtime/react";

/** The library's job types, and the app's own: what `synap-realtime generate-types` writes. */
export interface AppData extends NotificationData {
  "report.creation.completed": { title: string; fileUrl: string };
}
export type AppMessage = NotificationMessage<AppData>;

export const isTerminal = ({ status }: AppMessage) => status === "success" || status === "error";

/** One line for a toast, or for the list of results that came in while the user was away. */
export function notificationText(message: AppMessage): string {
  if (message.status === "error") {
    const kind = message.type.split(".")[0]!;
    const title = kind.charAt(0).toUpperCase() + kind.slice(1);
    return `${title} failed: ${String(message.data.error ?? "Something went wrong.")}`;
  }
  switch (message.type) {
    case "note.creation.completed":
      return `Note created: ${message.data.title ?? "…"}`;
    case "task.creation.completed":
      return `Task created: ${message.data.title ?? "…"}`;
    case "task.completion.completed":
      return "Task completed";
    case "project.creation.completed":
      return `Project created: ${message.data.title ?? "…"}`;
    case "report.creation.completed":
      return `Report written: ${message.data.title}`;
    case "conversation.response.generated":
      return "New reply in the conversation";
    default:
      return `Finished: ${message.type}`;
  }
}

const TITLES: Record<string, string> = {
  "note.creation": "Note",
  "task.creation": "Task",
  "task.completion": "Complete",
  "project.creation": "Project",
  "report.creation": "Report",
  "conversation.message": "Message",
};

/** What kind of job it is. */
export const jobTitle = ({ type }: JobRecord) => TITLES[type] ?? type;

type Shown = Pick<JobRecord, "progress" | "label" | "attempt" | "maxAttempts"> & Pick<JobState, "status">;

/** The state of a job in a few words. */
export function jobText({ status, label, progress, attempt, maxAttempts }: Shown): string {
  switch (status) {
    case "idle":
      return "queued";
    case "pending":
      return progress === undefined ? (label ?? "running") : `${Math.round(progress * 100)} %`;
    case "retrying":
      return maxAttempts ? `retrying, attempt ${attempt} of ${maxAttempts}` : `retrying, attempt ${attempt}`;
    case "stalled":
      return "stalled";
    case "disconnected":
      return "not connected";
    case "success":
      return "done";
    case "error":
      return "failed";
  }
}
