// Uses of the generated types that must compile; each line after @ts-expect-error must not.
import type { NotificationData, NotificationType, SynapNotification } from "./types";

export function show(notification: SynapNotification): string {
  switch (notification.type) {
    case "note.creation.started":
      // @ts-expect-error: it has no such member
      notification.data.title;
      return `${notification.data.runId}, ${notification.data.stallAfterS.toFixed(0)} s`;
    case "note.creation.progress":
      // @ts-expect-error: it may be absent
      notification.data.label.length;
      return `${Math.round((notification.data.progress ?? 0) * 100)} % ${notification.data.label ?? ""}`;
    case "note.creation.completed":
      // @ts-expect-error: it may have been left out
      notification.data.title.length;
      if (notification.data.truncated) {
        // @ts-expect-error: it may still have been
        notification.data.title.length;
        return `${notification.data.title ?? ""}, without ${notification.data.omitted.join()}`;
      }
      return `${notification.data.title}: ${notification.data.fileUrl}`;
    case "task.creation.completed":
      return notification.data.dueDate ?? "some day";
    case "note.creation.failed":
    case "note.creation.cancelled":
      return notification.data.error;
    case "conversation.response.delta":
      return notification.data.delta.repeat(notification.data.index);
    // @ts-expect-error: no such type
    case "note.creation.complete":
      return "";
    default:
      return `${notification.id} ${notification.timestamp} ${notification.room}`;
  }
}

export function failed(notification: SynapNotification<"task.creation.failed">): string {
  return notification.data.error + (notification.requestId ?? "");
}

export function on<T extends NotificationType>(
  _type: T,
  _listener: (data: NotificationData[T]) => void,
): void {}

on("task.completion.completed", (data) => {
  if (!data.truncated) data.completedAt.slice(0, 10);
});
// @ts-expect-error: a status is one of three
on("note.creation.failed", (data) => data.status);
export const status: SynapNotification["status"][] = ["pending", "success", "error", undefined];
