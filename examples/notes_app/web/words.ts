/** What a user reads of a notification and of a job. */
import type { JobState, NotificationMessage } from "@synap/realtime/react";

export const ends = ({ status }: NotificationMessage) => status === "success" || status === "error";

/** One sentence for a toast, or the list of what happened while away. */
export function sentence(message: NotificationMessage): string {
  if (message.status === "error") {
    const what = message.type.split(".")[0]!;
    const named = what.charAt(0).toUpperCase() + what.slice(1);
    return `${named}: ${String(message.data.error ?? "something went wrong")}`;
  }
  switch (message.type) {
    case "note.creation.completed":
      return `The note “${message.data.title ?? "…"}” is there.`;
    case "task.creation.completed":
      return `The task “${message.data.title ?? "…"}” is there.`;
    case "task.completion.completed":
      return "The task is done.";
    case "project.creation.completed":
      return `The project “${message.data.title ?? "…"}” is there.`;
    case "conversation.response.generated":
      return "There is a reply.";
    default:
      return `${message.type} is over.`;
  }
}

/** A job in a few words. */
export function inWords({ status, label, progress, attempt, maxAttempts }: JobState): string {
  switch (status) {
    case "idle":
      return "asked for";
    case "pending":
      return progress === undefined ? (label ?? "working") : `${Math.round(progress * 100)} %`;
    case "retrying":
      return maxAttempts ? `trying again ${attempt} of ${maxAttempts}` : `trying again (${attempt})`;
    case "stalled":
      return "silent for too long";
    case "disconnected":
      return "not connected";
    case "success":
      return "done";
    case "error":
      return "failed";
  }
}
