/**
 * Metrics, if the Worker has an analytics binding (`METRICS`). See docs/cloudflare.md.
 *
 * The blobs of a data point are the event and its outcome; its doubles are the count and the bytes.
 */

import { VERSION } from "./version";

export type MetricEvent =
  | "publish" // accepted, duplicate, rejected, unavailable
  | "delivery" // live, replay
  | "error" // an error's code
  | "opened" // websocket, sse
  | "disconnect"; // a close code

export function count(env: Env, event: MetricEvent, outcome: string, n = 1, bytes = 0): void {
  if (n === 0) return;
  try {
    // workerd without Cloudflare has no analytics binding.
    (env as Partial<Env>).METRICS?.writeDataPoint({ indexes: [event], blobs: [event, outcome], doubles: [n, bytes] });
  } catch {
    // A request may write a limited number of data points. A metric must not fail the request.
  }
}

/** `GET /metrics`: a Worker is many processes, so the counts are in the analytics. */
export const METRICS_TEXT = `# HELP synap_realtime_build_info The version; counts are in the analytics dataset.
# TYPE synap_realtime_build_info gauge
synap_realtime_build_info{version="${VERSION}"} 1
`;
