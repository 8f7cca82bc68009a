/** `useJobs`: the list of a user's jobs. */
import { useEffect, useMemo, useRef } from "react";
import { baseOf, check, roomOf, type SubscribeOptions } from "../options.js";
import { order } from "../position.js";
import { isFinalStatus } from "../protocol.js";
import type { Status, Subscription } from "../state.js";
import { subscribe } from "../subscription.js";
import type { JobRecord } from "../tracker.js";
import { useLatest, useNewToken, useView, type ViewOptions } from "./effects.js";
import { useServer, type ServerOptions } from "./provider.js";
import { foldJob, idOf, type JobNotification } from "./records.js";
import { readSnapshot } from "./snapshot.js";
import { errorEvent, RoomStore, type RealtimeErrorEvent } from "./store.js";

export interface UseJobsReturn {
  /** Newest first. A job that has not changed is the same object as before. */
  jobs: readonly JobRecord[];
  /** Whether the list is known. */
  isLoaded: boolean;
  /** Whether there are more jobs than `limit`. */
  hasMore: boolean;
  /** Why the list could not be read. */
  error?: string | undefined;
  connection: Status;
  connectionError: RealtimeErrorEvent | null;
  /** Connect and read the list now, also after an error. */
  reload: () => void;
}

export interface JobsOptions<Selected = UseJobsReturn> extends ServerOptions, ViewOptions<UseJobsReturn, Selected> {
  userId: string;
  /** Only jobs that have this status, or one of these. */
  status?: JobRecord["status"] | readonly JobRecord["status"][] | undefined;
  /** Only jobs of this type. */
  type?: string | undefined;
  /** The length of the list. Default: 50. */
  limit?: number | undefined;
}

/**
 * Show the jobs of a user, newest first. The list is read from the server, and changes with the notifications in the
 * user's room. It is right again after any loss of the connection.
 *
 * ```tsx
 * const { jobs } = useJobs({ userId, status: ["running", "retrying"] });
 * ```
 *
 * @throws TypeError it names the invalid option.
 */
export function useJobs<Selected = UseJobsReturn>(given: JobsOptions<Selected>): Selected {
  const options = useServer(given);
  const latest = useLatest(options);
  const { userId, url, type = "", limit = 50, enabled = true } = options;
  const statuses = `${options.status ?? ""}`; // a list is joined by commas
  check(options);
  baseOf(url);
  const room = roomOf("user", userId);
  const current = useRef<Subscription | null>(null);
  const reload = useRef(() => {});
  const list = useMemo(
    () =>
      new RoomStore<UseJobsReturn>({
        jobs: [], isLoaded: false, hasMore: false, connection: "closed", connectionError: null,
        reload: () => reload.current(),
      }),
    [room, url, statuses, type, limit],
  );

  useEffect(() => {
    if (!enabled) return;
    const path = `/users/${encodeURIComponent(userId)}/jobs?limit=${limit}${statuses && `&status=${statuses}`}${type && `&type=${encodeURIComponent(type)}`}`;
    let records = new Map<string, JobRecord>();
    const fences = new Map<string, number>(); // of runs
    const ignored = new Set<string>(); // events of jobs that are not in the list
    let cursor: string | undefined; // up to which the list is known
    let from: string | undefined; // from which on notifications are received
    let received: JobNotification[] = []; // during the request
    let request: object | undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let failures = 0;
    let size = 0; // of the list that was read

    const set = (change: Partial<UseJobsReturn>) => list.set({ ...list.value, ...change });
    const show = (change: Partial<UseJobsReturn> = {}) => {
      const all = [...records.values()].filter(
        (job) => (!statuses || statuses.split(",").includes(job.status)) && (!type || job.type === type),
      );
      all.sort(({ startedAt: one = "" }, { startedAt: other = "" }) => (one < other ? 1 : one > other ? -1 : 0));
      const { hasMore } = { ...list.value, ...change };
      if (hasMore && all.length < size) load(); // one does not match any more
      set({ ...change, jobs: all.slice(0, limit), hasMore: hasMore || all.length > limit });
    };
    const apply = (notification: JobNotification) => {
      const { event, runId } = notification.job;
      const id = idOf({ ...notification, runId });
      const before = records.get(id);
      if (!before && event !== "started") {
        // The job is older than the list, or had another status.
        if (!ignored.has(id + event)) load();
        ignored.add(id + event);
        return;
      }
      const after = foldJob(before, notification, fences)!;
      if (after === before) return;
      records.set(id, after);
      show();
    };

    /** Read the list, after the present task: several reasons are one request. */
    const load = (ms = 0) => {
      clearTimeout(timer);
      timer = setTimeout(async () => {
        const mine = (request = {});
        received = [];
        try {
          const found = await readSnapshot<{ jobs: JobRecord[]; cursor: string; next: string | null }>(path, source);
          if (request !== mine) return;
          failures = 0;
          const old = records;
          records = new Map(found.jobs.map((job) => [idOf(job), job]));
          for (const [id, job] of records) {
            const before = old.get(id);
            if (before && before.runId !== job.runId) fences.set(before.runId, Infinity);
            if (JSON.stringify(before) === JSON.stringify(job)) records.set(id, before!);
          }
          ({ cursor } = found);
          size = records.size;
          request = undefined;
          show({ isLoaded: true, hasMore: !!found.next, error: undefined });
          for (const each of received) if (!(order(each.cursor, cursor) <= 0)) apply(each);
          join();
        } catch (error) {
          if (request !== mine) return;
          request = undefined;
          const { message, status } = error as Error & { status?: number };
          set({ error: message });
          if (!isFinalStatus(status ?? 0)) load(Math.min(16_000, 1000 * 2 ** failures++));
        }
      }, ms);
    };
    /** Read the list again if something was published between it and what is received. */
    const join = () => {
      if (from && cursor && !request && from !== cursor && !(order(from, cursor) <= 0)) load();
    };

    const source: SubscribeOptions = {
      url,
      get token() {
        return latest.current.token;
      },
      after: "latest",
      acknowledge: false, // this is not what the user's notifications are for
      maxReconnects: Infinity,
      onNotification: (notification) => {
        if (!("job" in notification)) return;
        const each = notification as unknown as JobNotification;
        if (request) received.push(each);
        if (list.value.isLoaded) apply(each);
      },
      onStateChange: ({ status, error }) => {
        set({ connection: status, connectionError: errorEvent(error) });
        if (status === "open" && !from)
          queueMicrotask(() => {
            from = subscription.cursor;
            join();
          });
      },
      onGap: () => load(),
    };
    const subscription = subscribe(room, source);
    current.current = subscription;
    reload.current = () => {
      if (subscription.state.status !== "open") subscription.reconnect();
      load();
    };
    load();
    return () => {
      request = undefined;
      clearTimeout(timer);
      subscription.close();
      set({ connection: "closed" });
    };
  }, [list, enabled, latest]);
  useNewToken(options.token, current);

  return useView(list, options);
}
