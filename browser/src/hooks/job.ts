/** `useJob`: the job of a request. */
import { useCallback, useEffect, useMemo, useRef } from "react";
import { IDLE, JobTracker, type JobState } from "../job.js";
import { baseOf, check, roomOf, type SubscribeOptions } from "../options.js";
import type { Status, Subscription } from "../state.js";
import { subscribe } from "../subscription.js";
import { useLatest, useNewToken, useValue } from "./effects.js";
import { errorEvent, RoomStore, type RealtimeErrorEvent } from "./store.js";

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

/** The state of one job, over all of its connections. */
class JobStore<Result> extends RoomStore<Omit<UseJobReturn<Result>, "reconnect">> {
  readonly tracker = new JobTracker<Result>();

  constructor() {
    super({ ...IDLE, connection: "closed", connectionError: null });
  }
  connected(connection: Status, connectionError: RealtimeErrorEvent | null): void {
    this.show({ connection, connectionError: connection === "connecting" ? this.value.connectionError : connectionError });
  }
  show({ connection, connectionError }: Pick<UseJobReturn, "connection" | "connectionError"> = this.value): void {
    const { tracker } = this;
    const isRefused = connection === "closed" && connectionError && !tracker.isFinished;
    this.set({ ...tracker.state, ...(isRefused && { status: "disconnected" }), connection, connectionError });
  }
}

/**
 * Follow the job of a request until it is finished. The job may have finished before the component was mounted.
 *
 * ```tsx
 * const { status, progress, text } = useJob(requestId, { token });
 * ```
 *
 * @param requestId null, undefined or "" for none: the status is `idle`.
 * @throws TypeError it names the invalid option.
 */
export function useJob<Result = Record<string, unknown>>(
  requestId: string | null | undefined,
  options: Pick<SubscribeOptions, "url" | "token"> = {},
): UseJobReturn<Result> {
  const latest = useLatest(options);
  const { url } = options;
  check(options);
  baseOf(url);
  const room = (requestId ?? "") === "" ? undefined : roomOf("request", requestId);
  const current = useRef<Subscription | null>(null);
  const job = useMemo(() => new JobStore<Result>(), [room, url]);

  useEffect(() => {
    const { tracker } = job;
    if (!room || tracker.isFinished) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    /** Start the stall timer. Without a connection, missing notifications do not mean that the job stalls. */
    const awaitStall = () => {
      clearTimeout(timer);
      if (!tracker.stallAfterMs || subscription.state.status !== "open") return;
      timer = setTimeout(() => {
        tracker.markStalled();
        job.show();
      }, Math.min(tracker.stallAfterMs, MAX_TIMER_MS));
    };
    const subscription = subscribe(room, {
      url,
      get token() {
        return latest.current.token;
      },
      after: job.start("earliest"),
      maxReconnects: Infinity,
      onNotification: (notification) => {
        if (!job.isNew(notification)) return;
        tracker.apply(notification);
        job.show();
        awaitStall();
        if (!tracker.isFinished) return;
        subscription.close();
        job.connected("closed", null);
      },
      onStateChange: ({ status, error }) => {
        job.connected(status, errorEvent(error));
        awaitStall();
      },
      onGap: () => {
        tracker.gap();
        job.show();
      },
    });
    current.current = subscription;
    return () => {
      clearTimeout(timer);
      job.end(subscription);
      subscription.close();
      if (!tracker.isFinished) job.connected("closed", null);
    };
  }, [room, url, job, latest]);
  useNewToken(options.token, current);

  const state = useValue(job);
  const reconnect = useCallback(() => current.current?.reconnect(), []);
  return useMemo(() => ({ ...state, reconnect }), [state, reconnect]);
}
