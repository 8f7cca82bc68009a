/** React hooks: `useSynapRealtime` for a room, `useJob` for a request, `useJobs` for a user. */
export { useJob } from "./hooks/job.js";
export type { JobOptions, UseJobReturn } from "./hooks/job.js";
export { useJobs } from "./hooks/jobs.js";
export type { JobsOptions, UseJobsReturn } from "./hooks/jobs.js";
export { RealtimeProvider } from "./hooks/model.js";
export type { RealtimeProviderProps, ServerOptions } from "./hooks/model.js";
export { useSynapRealtime } from "./hooks/realtime.js";
export type { RealtimeOptions, UseSynapRealtimeReturn } from "./hooks/realtime.js";
export type { ViewOptions } from "./hooks/model.js";
export type { RealtimeErrorEvent } from "./hooks/model.js";
export type { JobState } from "./tracker.js";
export type { JobRecord } from "./records.js";
export type { NotificationMessage } from "./message.js";
