/** `useJobs`: the list of a user's jobs. */
import { roomOf } from "../options.js";
import { order } from "../position.js";
import type { Delivered } from "../protocol.js";
import { foldJob, idOf, type Fences, type JobRecord } from "../records.js";
import type { Subscription } from "../state.js";
import { useModel, type ViewOptions } from "./model.js";
import type { ServerOptions } from "./provider.js";
import { createSnapshot } from "./snapshot.js";
import { createStore, setConnection, type ConnectionState } from "./store.js";

export interface UseJobsReturn extends ConnectionState {
  /** Newest first. A job that has not changed is the same object as before. */
  jobs: readonly JobRecord[];
  /** Whether the list is known. */
  isLoaded: boolean;
  /** Whether there are more jobs than `limit`. */
  hasMore: boolean;
  /** Why the list could not be read. */
  error?: string | undefined;
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
  const { userId, type = "", limit = 50 } = given;
  const statuses = `${given.status ?? ""}`; // a list is joined by commas
  const room = roomOf("user", userId);
  return useModel(given, [room, statuses, type, limit], ({ latest, open }) => {
    const store = createStore<UseJobsReturn>({
      jobs: [], isLoaded: false, hasMore: false, connection: "closed", connectionError: null,
      reload: () => {
        if (!subscription) return;
        if (subscription.state.status !== "open") subscription.reconnect();
        snapshot.readSoon();
      },
    });
    let subscription: Subscription | undefined; // while it is started
    let records = new Map<string, JobRecord>();
    const fences: Fences = new Map();
    const ignored = new Set<string>(); // events of jobs that are not in the list
    let cursor: string | undefined; // up to which the list is known
    let from: string | undefined; // from which on notifications are received
    let received: Delivered[] = []; // during the request
    let size = 0; // of the list that was read

    const show = (change: Partial<UseJobsReturn> = {}) => {
      const all = [...records.values()].filter(
        (job) => (!statuses || statuses.split(",").includes(job.status)) && (!type || job.type === type),
      );
      all.sort(({ startedAt: one = "" }, { startedAt: other = "" }) => +(one < other) - +(one > other));
      const { hasMore } = { ...store.get(), ...change };
      if (hasMore && all.length < size) snapshot.readSoon(); // one does not match any more
      store.set({ ...change, jobs: all.slice(0, limit), hasMore: hasMore || all.length > limit });
    };
    const apply = (notification: Delivered) => {
      const { event, runId } = notification.job!;
      const id = idOf({ ...notification, runId });
      const before = records.get(id);
      if (!before && event !== "started") {
        // The job is older than the list, or had another status.
        if (!ignored.has(id + event)) snapshot.readSoon();
        ignored.add(id + event);
        return;
      }
      const after = foldJob(before, notification, fences);
      if (after === before) return;
      records.set(id, after);
      show();
    };
    /** Whether a position is after that of the list. */
    const isNewer = (other: string | undefined) => other !== cursor && !(order(other, cursor) <= 0);
    /** Read the list again if something was published between it and what is received. */
    const join = () => {
      if (from && cursor && !snapshot.isReading() && isNewer(from)) snapshot.readSoon();
    };

    const snapshot = createSnapshot<{ jobs: JobRecord[]; cursor: string; next: string | null }>(
      `/users/${encodeURIComponent(userId)}/jobs?limit=${limit}${statuses && `&status=${statuses}`}${type && `&type=${encodeURIComponent(type)}`}`,
      latest,
      (found) => {
        const old = records;
        records = new Map(found.jobs.map((job) => [idOf(job), job]));
        for (const [id, job] of records) {
          const before = old.get(id);
          if (before && before.runId !== job.runId) fences.set(before.runId, Infinity);
          if (JSON.stringify(before) === JSON.stringify(job)) records.set(id, before!);
        }
        ({ cursor } = found);
        size = records.size;
        show({ isLoaded: true, hasMore: !!found.next, error: undefined });
        for (const each of received) if (isNewer(each.cursor)) apply(each);
        received = [];
        join();
      },
      ({ message }) => {
        received = [];
        store.set({ error: message });
        return true;
      },
    );
    return {
      store,
      start: () => {
        from = undefined;
        const opened = open(room, {
          after: "latest",
          acknowledge: false, // this is not what the user's notifications are for
          maxReconnects: Infinity,
          onNotification: (notification) => {
            if (!("job" in notification)) return;
            const each = notification as Delivered;
            if (snapshot.isReading()) received.push(each);
            if (store.get().isLoaded) apply(each);
          },
          onStateChange: (state) => {
            setConnection(store, state);
            if (state.status === "open" && !from)
              queueMicrotask(() => {
                from = opened.cursor;
                join();
              });
          },
          onGap: snapshot.readSoon,
        });
        subscription = opened;
        snapshot.readSoon();
        return () => {
          snapshot.stop();
          opened.close();
          subscription = undefined;
          setConnection(store);
        };
      },
    };
  });
}
