/** React hooks: `useSynapRealtime` for a room, `useJob` for a request. */
export { useJob } from "./hooks/job.js";
export type { UseJobReturn } from "./hooks/job.js";
export { useSynapRealtime } from "./hooks/realtime.js";
export type { RealtimeOptions, UseSynapRealtimeReturn } from "./hooks/realtime.js";
export type { RealtimeErrorEvent } from "./hooks/store.js";
export type { JobState } from "./job.js";
export type { NotificationMessage } from "./message.js";
