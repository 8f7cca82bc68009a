/** `useJob`: the job of a request. */
import { roomOf } from "../options.js";
import type { JobRecord } from "../records.js";
import type { State, Subscription } from "../state.js";
import { createTimer } from "../timer.js";
import { IDLE, JobTracker, type JobState } from "../tracker.js";
import { useModel, type ViewOptions } from "./model.js";
import type { ServerOptions } from "./provider.js";
import { createSnapshot } from "./snapshot.js";
import { createStore, setConnection, type ConnectionState } from "./store.js";

/** A timer with a longer delay, about 25 days, would fire immediately. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** The state of a job, and the state of the connection that reports it. Each can fail without the other. */
export interface UseJobReturn<Result = Record<string, unknown>> extends JobState<Result>, ConnectionState {
  /** Connect now, also when the status is `disconnected`. */
  reconnect: () => void;
}

export interface JobOptions<Result = Record<string, unknown>, Selected = UseJobReturn<Result>>
  extends ServerOptions,
    ViewOptions<UseJobReturn<Result>, Selected> {}

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
  return useModel(given, [room], ({ latest, open, reconnect }) => {
    const tracker = new JobTracker<Result>();
    const store = createStore<UseJobReturn<Result>>({ ...IDLE, connection: "closed", connectionError: null, reconnect });
    const stallTimer = createTimer();
    let subscription: Subscription | undefined;
    let after = "earliest";

    const showConnection = (state?: State) => {
      setConnection(store, state);
      show();
    };
    const show = () => {
      if (tracker.isFinished) {
        subscription?.close();
        setConnection(store);
      }
      const { connection, connectionError } = store.get();
      store.set({ ...tracker.state, ...(connection === "closed" && connectionError && { status: "disconnected" }) });
      stallTimer.stop();
      // Without a connection, missing notifications do not mean that the job stalls.
      const { stallAfterMs } = tracker;
      if (!stallAfterMs || connection !== "open") return;
      stallTimer.start(Math.min(stallAfterMs, MAX_TIMER_MS), () => {
        tracker.markStalled();
        store.set(tracker.state);
      });
    };
    const follow = (from: string) => {
      if (tracker.isFinished) return;
      subscription = open(room!, {
        after: from,
        maxReconnects: Infinity,
        onNotification: (notification) => {
          tracker.apply(notification);
          show();
        },
        onStateChange: showConnection,
        onGap: () => {
          tracker.gap();
          show();
          snapshot.read();
        },
      });
    };
    const snapshot = createSnapshot<{ job: JobRecord<Result>; cursor: string }>(
      `/jobs/${encodeURIComponent(requestId!)}`,
      latest,
      ({ job, cursor }) => {
        tracker.restore(job);
        subscription?.close(); // what it has received meanwhile comes again
        show();
        // The log may have the text of a job without one.
        follow(job.text === undefined ? "earliest" : cursor);
      },
      () => {
        if (!subscription) follow("earliest");
        // Without a snapshot, the room shows the job, unless it ended so long ago that its log is gone.
        return tracker.state.status === "idle";
      },
    );
    return {
      store,
      start: () => {
        if (!room || tracker.isFinished) return;
        if (after === "earliest") {
          showConnection({ status: "connecting" });
          snapshot.read();
        } else follow(after);
        return () => {
          snapshot.stop();
          after = subscription?.resume ?? after;
          subscription?.close();
          subscription = undefined;
          showConnection();
        };
      },
    };
  });
}
