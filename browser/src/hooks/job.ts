/** `useJob`: the job of a request. */
import { roomOf } from "../options.js";
import type { JobRecord } from "../records.js";
import { createTimer } from "../timer.js";
import { IDLE, JobTracker, type JobState } from "../tracker.js";
import { follow } from "./follow.js";
import { DISCONNECTED, useModel, type ConnectionState, type ServerOptions, type ViewOptions } from "./model.js";

/** The state of a job, and the state of the connection that reports it. Each can fail without the other. */
export interface UseJobReturn<Result = Record<string, unknown>> extends JobState<Result>, ConnectionState {
  /** Connect now, also when the status is `disconnected`. */
  reconnect: () => void;
}

export interface JobOptions<Result = Record<string, unknown>, Selected = UseJobReturn<Result>>
  extends ServerOptions,
    ViewOptions<UseJobReturn<Result>, Selected> {}

/** The answer of `GET /jobs/{requestId}`. */
interface Snapshot<Result> {
  job: JobRecord<Result>;
  cursor: string;
}

/**
 * Follow the job of a request until it is finished. The job may have finished before the component was mounted, even
 * days before: its state is read from the server at first.
 *
 * ```tsx
 * const { status, progress, text } = useJob(requestId);
 * ```
 *
 * @param requestId null, undefined or "" for none: the status is `idle`.
 * @throws TypeError it names the invalid option.
 */
export function useJob<Result = Record<string, unknown>, Selected = UseJobReturn<Result>>(
  requestId: string | null | undefined,
  given: JobOptions<Result, Selected> = {},
): Selected {
  const room = (requestId ?? "") === "" ? undefined : roomOf("request", requestId);
  return useModel(given, [room], (client) => {
    const tracker = new JobTracker<Result>();
    const timer = createTimer();
    const show = () => {
      const { connection, connectionError } = client.value;
      client.set({ ...tracker.state, ...(connection === "closed" && connectionError && { status: "disconnected" }) });
      if (tracker.isFinished && client.subscription) client.close();
      timer.stop();
      const { stallAfterMs } = tracker;
      // Without a connection, missing notifications do not mean that the job stalls. A timer waits for 25 days at most.
      if (connection !== "open" || !(stallAfterMs! < 2 ** 31)) return;
      timer.start(stallAfterMs!, () => {
        tracker.markStalled();
        client.set(tracker.state);
      });
    };
    return {
      get room() {
        return tracker.isFinished ? undefined : room;
      },
      subscribe: follow<Snapshot<Result>>,
      route: `jobs/${requestId}`,
      value: { ...IDLE, ...DISCONNECTED, reconnect: client.connect },
      onState: (connection, connectionError) => {
        client.set({ connection, connectionError });
        show();
      },
      onSnapshot: ({ job, cursor }: Snapshot<Result>) => {
        tracker.restore(job);
        show();
        // The log may have the text of a job without one.
        return job.text === undefined ? undefined : cursor;
      },
      // Without a snapshot, the room shows the job, unless it ended so long ago that its log is gone.
      onError: () => tracker.state.status !== "idle",
      onNotification: (notification) => {
        tracker.apply(notification);
        show();
      },
      onGap: () => {
        tracker.gap();
        show();
      },
    };
  });
}
