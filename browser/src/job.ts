/** The state of a job, without React: `@synap/realtime/job`. */
export { JobTracker } from "./tracker.js";
export type { JobState } from "./tracker.js";
export type { JobRecord } from "./records.js";
export type { NotificationMessage } from "./message.js";
