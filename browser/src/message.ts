/** The type of a notification: comparing `type` narrows the type of `data`. */
import type { NotificationData } from "./types.js";

/**
 * Any notification of `Data`. Until its `type` is compared, the members of its `data` are of type `unknown`.
 *
 * For your own job types, generate `NotificationData` with `synap-realtime generate-types`, and pass it:
 * `useSynapRealtime<NotificationData>(…)`.
 */
export type NotificationMessage<Data extends object = NotificationData> = {
  [Type in keyof Data & string]: {
    type: Type;
    data: Data[Type] & Record<string, unknown>;
    /** Identifies the notification: a second one with the same id is a duplicate. */
    id?: string;
    /** The request that started the job. */
    requestId?: string;
    /** The state of the job; `pending` while it runs or waits for a retry. */
    status?: "pending" | "success" | "error";
    /** RFC 3339, in UTC with milliseconds. */
    timestamp?: string;
    room?: string;
    /** The notification's position in the room. */
    cursor?: string;
  };
}[keyof Data & string];
