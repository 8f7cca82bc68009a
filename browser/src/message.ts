/** How a notification is typed: to ask for its `type` is to know its `data`. */
import type { NotificationData } from "./types.js";

/**
 * Any notification of those in `Data`. What is not told apart by its `type` yet has members of unknown types.
 *
 * Your own families: make their types with `synap-realtime generate-types`, and name them,
 * `useSynapRealtime<NotificationData>(…)` with the `NotificationData` of that file.
 */
export type NotificationMessage<Data extends object = NotificationData> = {
  [Type in keyof Data & string]: {
    type: Type;
    data: Data[Type] & Record<string, unknown>;
    /** The same id is the same notification. */
    id?: string;
    /** The request that this answers. */
    requestId?: string;
    /** How the job stands: progress and retries are pending. */
    status?: "pending" | "success" | "error";
    /** RFC 3339, in UTC with milliseconds. */
    timestamp?: string;
    room?: string;
    /** Its place in the room. */
    cursor?: string;
  };
}[keyof Data & string];
