/** Listen to the rooms of synap-realtime, without a framework. For React: `@synap/realtime/react`. */
export { RealtimeError, subscribe } from "./socket.js";
export type {
  CursorStorage,
  Presence,
  PresentUser,
  State,
  Status,
  SubscribeOptions,
  Subscription,
} from "./socket.js";
export { subscribeShared } from "./tabs.js";
export { JobView } from "./job.js";
export type { JobState } from "./job.js";
export type { NotificationMessage } from "./message.js";
export type * from "./types.js";
