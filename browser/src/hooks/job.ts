/** `useJob`: the job of a request. */
import { useEffect, useMemo } from "react";
import { roomOf } from "../options.js";
import type { JobRecord } from "../records.js";
import type { State, Status, Subscription } from "../state.js";
import { createTimer } from "../timer.js";
import { IDLE, JobTracker, type JobState } from "../tracker.js";
import { useSubscription, useView, type ViewOptions } from "./effects.js";
import type { ServerOptions } from "./provider.js";
import { createSnapshot } from "./snapshot.js";
import { createStore, errorEvent, type RealtimeErrorEvent } from "./store.js";

/** A timer with a longer delay, about 25 days, would fire immediately. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** The state of a job, and the state of the connection that reports it. Each can fail without the other. */
export interface UseJobReturn<Result = Record<string, unknown>> extends JobState<Result> {
  /** `reconnecting`: the connection was lost, and the next attempt is scheduled. `closed` when the job is finished. */
  connection: Status;
  connectionError: RealtimeErrorEvent | null;
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
  const { options, url, latest, current, open } = useSubscription(given);
  const { enabled = true } = options;
  const room = (requestId ?? "") === "" ? undefined : roomOf("request", requestId);
  // A new request gets a new store, so that no render shows the old job.
  const job = useMemo(() => {
    const reconnect = () => current.current?.reconnect();
    const store = createStore<UseJobReturn<Result>>({ ...IDLE, connection: "closed", connectionError: null, reconnect });
    return { store, tracker: new JobTracker<Result>(), after: "earliest" };
  }, [room, url]);
  const { store } = job;

  useEffect(() => {
    const { tracker } = job;
    if (!room || !enabled || tracker.isFinished) return;
    const stallTimer = createTimer();
    let subscription: Subscription | undefined;
    /** @param state of the connection, if it has changed. */
    const show = (state?: State) => {
      if (tracker.isFinished) {
        subscription?.close();
        state = { status: "closed" };
      }
      let { connection, connectionError } = store.get();
      if (state) {
        connection = state.status;
        connectionError = errorEvent(state, connectionError);
      }
      const isRefused = connection === "closed" && connectionError;
      store.set({ ...tracker.state, ...(isRefused && { status: "disconnected" }), connection, connectionError });
      stallTimer.stop();
      // Without a connection, missing notifications do not mean that the job stalls.
      const { stallAfterMs } = tracker;
      if (!stallAfterMs || connection !== "open") return;
      stallTimer.start(Math.min(stallAfterMs, MAX_TIMER_MS), () => {
        tracker.markStalled();
        store.set(tracker.state);
      });
    };
    const start = (after: string) => {
      if (tracker.isFinished) return;
      subscription = open(room, {
        after,
        maxReconnects: Infinity,
        onNotification: (notification) => {
          tracker.apply(notification);
          show();
        },
        onStateChange: show,
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
      (found) => {
        tracker.restore(found.job);
        subscription?.close(); // what it has received meanwhile comes again
        show();
        // The log may have the text of a job without one.
        start(found.job.text === undefined ? "earliest" : found.cursor);
      },
      () => {
        if (!subscription) start("earliest");
        // Without a snapshot, the room shows the job, unless it ended so long ago that its log is gone.
        return tracker.state.status === "idle";
      },
    );
    if (job.after === "earliest") {
      show({ status: "connecting" });
      snapshot.read();
    } else start(job.after);
    return () => {
      snapshot.stop();
      job.after = subscription?.resume ?? job.after;
      subscription?.close();
      show({ status: "closed" });
    };
  }, [job, enabled]);

  return useView(store, options);
}
