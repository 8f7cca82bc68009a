// Must not compile: what has started has no file yet.
import type { SynapNotification } from "./types";

export function show(notification: SynapNotification): string {
  return notification.type === "note.creation.started" ? notification.data.fileUrl : "";
}
