/** Subscribe to rooms of synap-realtime without a framework. For React: `@synap/realtime/react`. */
export { RealtimeError, subscribe } from "./subscription.js";
export type {
  CursorStorage,
  Presence,
  PresentUser,
  State,
  Status,
  SubscribeOptions,
  Subscription,
} from "./subscription.js";
export { subscribeShared } from "./shared.js";
export { JobTracker } from "./job.js";
export type { JobState } from "./job.js";
export type { NotificationMessage } from "./message.js";
export type * from "./types.js";
