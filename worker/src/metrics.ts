/**
 * Counts, where the Worker has an analytics binding (`METRICS`). See docs/cloudflare.md.
 *
 * A data point's blobs are what happened and how it went; its doubles are how many, and bytes.
 */

import type { Env } from "./settings";
import { VERSION } from "./version";

export type MetricEvent =
  | "publish" // accepted, duplicate, rejected, unavailable
  | "delivery" // live, replay
  | "error" // an error's code
  | "opened" // websocket, sse
  | "disconnect"; // a close code

export function count(env: Env, what: MetricEvent, how: string, many = 1, bytes = 0): void {
  if (many === 0) return;
  try {
    env.METRICS?.writeDataPoint({ indexes: [what], blobs: [what, how], doubles: [many, bytes] });
  } catch {
    // One request may write so many; what is counted has happened all the same.
  }
}

/** `GET /metrics`: a Worker is many processes, so the counts are in the analytics. */
export const METRICS_TEXT = `# HELP synap_realtime_build_info The version; counts are in the analytics dataset.
# TYPE synap_realtime_build_info gauge
synap_realtime_build_info{version="${VERSION}"} 1
`;
