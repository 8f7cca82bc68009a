/** Following jobs: read a snapshot of them, then receive the notifications after it. See PROTOCOL.md, "Job state". */
import { baseOf, type SubscribeOptions } from "../options.js";
import { order } from "../position.js";
import { isFinalStatus, type Delivered } from "../protocol.js";
import { RealtimeError, type Subscription } from "../state.js";
import { subscribe } from "../subscription.js";
import { createTimer } from "../timer.js";
import { fetchToken } from "../token.js";
import { address } from "../transports.js";
import type { Connection } from "./model.js";

/** The room is followed without its snapshot if that does not come within this time, after which it is read again. */
const ANSWER_WITHIN_MS = 5_000;

export interface FollowOptions<Snapshot> extends Omit<SubscribeOptions, "onNotification"> {
  /** The route of the snapshot, and its query. */
  route: string;
  query?: Record<string, string>;
  /** @returns the position whose notifications follow; undefined: as for any subscription. */
  onSnapshot(snapshot: Snapshot): string | undefined;
  /** The snapshot could not be read. @returns whether it is not needed any more. */
  onError(error: { message: string }): unknown;
  /** @returns whether to read the snapshot again, because the notification is not enough. */
  onNotification(notification: Delivered): unknown;
}

/**
 * Subscribe to a room of jobs from a snapshot of them on.
 *
 * What is received while the snapshot is read again waits for it, and is then applied if it is newer.
 */
export function follow<Snapshot>(room: string, options: FollowOptions<Snapshot>): Omit<Connection, "send"> {
  const timer = createTimer();
  let subscription: Subscription | undefined;
  let request: AbortController | undefined;
  let received: Delivered[] = []; // during the request

  const cancel = () => {
    request?.abort();
    request = undefined;
    timer.stop();
  };
  const apply = (notification: Delivered) => {
    if (options.onNotification(notification)) void read();
  };
  const subscribeAfter = (after?: string) => {
    subscription?.close();
    subscription = subscribe(room, {
      __proto__: options, // which has the latest token
      after,
      acknowledge: false, // this is not what the user's notifications are for
      maxReconnects: Infinity,
      onNotification: (notification: unknown) => {
        if (request) received.push(notification as Delivered);
        else apply(notification as Delivered);
      },
      onGap: () => {
        options.onGap?.(room);
        void read();
      },
    } as SubscribeOptions);
  };
  /** Read the snapshot now. */
  const read = async () => {
    cancel();
    const current = (request = new AbortController());
    const known = subscription?.cursor;
    let snapshot;
    const fail = (error: { message: string; retriable?: boolean }) => {
      if (request !== current) return;
      cancel();
      if (!subscription) subscribeAfter(options.after);
      received.forEach(apply);
      if (!options.onError(error) && error.retriable !== false) timer.start(ANSWER_WITHIN_MS, read);
    };
    received = [];
    timer.start(ANSWER_WITHIN_MS, () => fail({ message: "no answer" }));
    try {
      const token = await fetchToken(options);
      const response = await fetch(address({ base: baseOf(options.url), query: options.query! }, options.route), {
        headers: (token && { Authorization: `Bearer ${token}` }) as Record<string, string>,
        cache: "no-store",
        redirect: "error", // a redirect could send the token to another host
        signal: current.signal,
      });
      const { status } = response;
      snapshot = await response.json();
      if (status !== 200) throw new RealtimeError(snapshot.details, status, !isFinalStatus(status));
    } catch (error) {
      return fail(error as Error);
    }
    if (request !== current) return;
    const after = options.onSnapshot(snapshot);
    if (request !== current) return; // it was closed
    cancel();
    // The subscription has received all that follows, or will.
    if (order(known, after) <= 0) received.forEach((each) => order(each.cursor, after) <= 0 || apply(each));
    else subscribeAfter(after);
  };
  void read();
  return {
    get resume() {
      return subscription?.resume;
    },
    /** Also read the snapshot again. */
    reconnect: () => {
      if (subscription?.state.status !== "open") subscription?.reconnect();
      void read();
    },
    close: () => {
      cancel();
      subscription?.close();
    },
  };
}
