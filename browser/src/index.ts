/** Subscribe to rooms of synap-realtime without a framework. For React: `@synap/realtime/react`. */
export { subscribe } from "./subscription.js";
export { RealtimeError } from "./state.js";
export type { State, Status, Subscription } from "./state.js";
export type { CursorStorage, SubscribeOptions } from "./options.js";
export type { Presence, PresentUser } from "./protocol.js";
export { subscribeShared } from "./tabs.js";
export type { JobState } from "./tracker.js";
export type { NotificationMessage } from "./message.js";
export type * from "./types.js";
