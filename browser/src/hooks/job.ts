/** `useJob`: the job of a request. */
import { useCallback, useEffect, useMemo, useRef } from "react";
import { baseOf, check, roomOf, type SubscribeOptions } from "../options.js";
import { isFinalStatus } from "../protocol.js";
import type { Status, Subscription } from "../state.js";
import { subscribe } from "../subscription.js";
import { IDLE, JobTracker, type JobRecord, type JobState } from "../tracker.js";
import { useLatest, useNewToken, useView, type ViewOptions } from "./effects.js";
import { useServer, type ServerOptions } from "./provider.js";
import { readSnapshot } from "./snapshot.js";
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

export interface JobOptions<Result = Record<string, unknown>, Selected = UseJobReturn<Result>>
  extends ServerOptions,
    ViewOptions<UseJobReturn<Result>, Selected> {}

/** The state of one job, over all of its connections. */
class JobStore<Result> extends RoomStore<UseJobReturn<Result>> {
  readonly tracker = new JobTracker<Result>();

  constructor(reconnect: () => void) {
    super({ ...IDLE, connection: "closed", connectionError: null, reconnect });
  }
  show(connection: Status = this.value.connection, error: RealtimeErrorEvent | null = this.value.connectionError): void {
    const { tracker } = this;
    const connectionError = connection === "connecting" ? this.value.connectionError : error;
    const isRefused = connection === "closed" && connectionError && !tracker.isFinished;
    this.set({ ...this.value, ...tracker.state, ...(isRefused && { status: "disconnected" }), connection, connectionError });
  }
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
  const options = useServer(given);
  const latest = useLatest(options);
  const { url, enabled = true } = options;
  check(options);
  baseOf(url);
  const room = (requestId ?? "") === "" ? undefined : roomOf("request", requestId);
  const current = useRef<Subscription | null>(null);
  const reconnect = useCallback(() => current.current?.reconnect(), []);
  const job = useMemo(() => new JobStore<Result>(reconnect), [room, url, reconnect]);

  useEffect(() => {
    const { tracker } = job;
    if (!room || !enabled || tracker.isFinished) return;
    let isOver = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let retryTimer: ReturnType<typeof setTimeout> | undefined;
    let subscription: Subscription | undefined;
    /** Show a change. */
    const show = () => {
      if (tracker.isFinished) {
        subscription?.close();
        job.show("closed", null);
      } else job.show();
      awaitStall();
    };
    /** Start the stall timer. Without a connection, missing notifications do not mean that the job stalls. */
    const awaitStall = () => {
      clearTimeout(timer);
      if (!tracker.stallAfterMs || subscription?.state.status !== "open") return;
      timer = setTimeout(() => {
        tracker.markStalled();
        job.show();
      }, Math.min(tracker.stallAfterMs, MAX_TIMER_MS));
    };
    const source: SubscribeOptions = {
      url,
      get token() {
        return latest.current.token;
      },
      after: job.start("earliest"),
      maxReconnects: Infinity,
      onNotification: (notification) => {
        tracker.apply(notification);
        show();
      },
      onStateChange: ({ status, error }) => {
        job.show(status, errorEvent(error));
        awaitStall();
      },
      onGap: () => {
        tracker.gap();
        job.show();
        begin();
      },
    };
    const start = () => {
      if (!tracker.isFinished) current.current = subscription = subscribe(room, source);
    };
    /** Show what the server has kept, and continue from there. */
    const restore = async () => {
      const found = await readSnapshot<{ job: JobRecord<Result>; cursor: string }>(`/jobs/${encodeURIComponent(requestId!)}`, source);
      if (isOver) return;
      tracker.restore(found.job);
      // The log may have the text of a job without one.
      source.after = found.job.text === undefined ? "earliest" : found.cursor;
      subscription?.close(); // what it has received meanwhile comes again
      show();
      start();
    };
    const begin = (failures = 0) => {
      restore().catch(({ status }: { status?: number }) => {
        if (isOver) return;
        if (!subscription) start();
        // Without a snapshot, the room shows the job, unless it ended so long ago that its log is gone.
        if (tracker.state.status !== "idle" || isFinalStatus(status ?? 0)) return;
        retryTimer = setTimeout(begin, Math.min(16_000, 1000 * 2 ** failures), failures + 1);
      });
    };
    if (source.after === "earliest") {
      job.show("connecting");
      begin();
    } else start();
    return () => {
      isOver = true;
      clearTimeout(timer);
      clearTimeout(retryTimer);
      if (subscription) job.end(subscription);
      subscription?.close();
      if (!tracker.isFinished) job.show("closed", null);
    };
  }, [room, url, enabled, job, latest]);
  useNewToken(options.token, current);

  return useView(job, options);
}
