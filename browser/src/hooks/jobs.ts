/** `useJobs`: the list of a user's jobs. */
import { roomOf } from "../options.js";
import { foldJob, type Fences, type JobRecord } from "../records.js";
import { follow } from "./follow.js";
import { DISCONNECTED, useModel, type ConnectionState, type ServerOptions, type ViewOptions } from "./model.js";

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

/** The answer of `GET /users/{id}/jobs`. */
interface Snapshot {
  jobs: JobRecord[];
  cursor: string;
  next: string | null;
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
  const status = `${given.status ?? ""}`; // a list is joined by commas
  const room = roomOf("user", userId);
  return useModel(given, [room, status, type, limit], (client) => {
    const fences: Fences = new Map();
    const ignored = new Set<string>(); // events of runs that are not in the list
    return {
      room,
      subscribe: follow<Snapshot>,
      route: `users/${userId}/jobs`,
      query: { limit: `${limit}`, status, type },
      after: "latest", // without the list
      value: {
        ...DISCONNECTED, jobs: [], isLoaded: false, hasMore: false,
        reload: () => client.subscription?.reconnect(),
      },
      onState: (connection, connectionError) => client.set({ connection, connectionError }),
      onSnapshot: ({ jobs, cursor, next }: Snapshot) => {
        client.set({
          jobs: jobs.map((job) => {
            const isSame = (old: JobRecord) => old.runId === job.runId && JSON.stringify(old) === JSON.stringify(job);
            return client.value.jobs.find(isSame) ?? job;
          }),
          isLoaded: true,
          hasMore: !!next,
          error: undefined,
        });
        return cursor;
      },
      onError: ({ message }: { message: string }) => client.set({ error: message }),
      onNotification: (notification) => {
        const { jobs, hasMore } = client.value;
        if (!notification.job) return;
        const { runId, event, name } = notification.job;
        const before = jobs.find((each) => each.runId === runId);
        const after = foldJob(before, notification, fences);
        const isListed = (!status || status.includes(after.status)) && (!type || type === name);
        if (before) {
          client.set({ jobs: jobs.flatMap((each) => (each !== before ? each : isListed ? after : [])) });
          return hasMore && !isListed;
        }
        // The list may have it now. Whether that is so is asked once for each event of a run.
        const key = runId + event;
        return isListed && !ignored.has(key) && ignored.add(key);
      },
    };
  });
}
