/** React hooks: `useSynapRealtime` for a room, `useJob` for a request. */
import { useCallback, useEffect, useInsertionEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { IDLE, JobTracker, type JobState } from "./job.js";
import type { NotificationMessage } from "./message.js";
import { baseOf, check, roomOf } from "./options.js";
import { Position } from "./position.js";
import { subscribe, type Status, type SubscribeOptions, type Subscription } from "./subscription.js";
import { subscribeShared } from "./shared.js";
import type { NotificationData } from "./types.js";

export type { JobState, NotificationMessage };

/** An `Event` with the cause of the error. */
export interface RealtimeErrorEvent extends Event {
  readonly message: string;
  /** A close code, or the HTTP status of a rejected request. */
  readonly code?: number;
  /** Whether a retry can succeed. */
  readonly retriable: boolean;
}

export interface RealtimeOptions<Data extends object = NotificationData>
  extends Omit<SubscribeOptions, "onNotification" | "onStateChange"> {
  userId: string;
  /** Subscribe to this request's room instead of the user's. */
  requestId?: string | undefined;
  /** An alias of `url`. */
  realtimeUrl?: string | undefined;
  /** Connect when the component is mounted. Default: true. */
  autoConnect?: boolean | undefined;
  /** Use one connection for all tabs. */
  shared?: boolean | undefined;
  /** The length of `messages`. Default: 100. */
  maxMessages?: number | undefined;
  onMessage?: ((message: NotificationMessage<Data>) => void) | undefined;
  onError?: ((error: RealtimeErrorEvent) => void) | undefined;
  onConnect?: (() => void) | undefined;
  onDisconnect?: (() => void) | undefined;
}

export interface UseSynapRealtimeReturn<Data extends object = NotificationData> {
  lastMessage: NotificationMessage<Data> | null;
  /** The last messages, oldest first. */
  messages: readonly NotificationMessage<Data>[];
  isConnected: boolean;
  status: Status;
  error: RealtimeErrorEvent | null;
  /** Connect, also after the last attempt has failed. */
  connect: () => void;
  disconnect: () => void;
  sendMessage: (message: string) => void;
}

/** A timer with a longer delay, about 25 days, would fire immediately. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** A value that components subscribe to. */
class Store<Value> {
  private readonly listeners = new Set<() => void>();
  constructor(public value: Value) {}
  readonly get = () => this.value;
  readonly subscribe = (listener: () => void) => {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  };
  set(value: Value): void {
    this.value = value;
    for (const listener of this.listeners) listener();
  }
}

interface RoomState<Data extends object> {
  lastMessage: NotificationMessage<Data> | null;
  messages: readonly NotificationMessage<Data>[];
  status: Status;
  error: RealtimeErrorEvent | null;
}

/** The state on a server, and before the first event. */
const initialState = <Data extends object>(): RoomState<Data> => ({
  lastMessage: null,
  messages: [],
  status: "closed",
  error: null,
});

function errorEvent(message: string, code: number | undefined, retriable: boolean): RealtimeErrorEvent {
  const event = typeof Event === "undefined" ? { type: "error" } : new Event("error");
  return Object.assign(event, { message, code, retriable }) as RealtimeErrorEvent;
}

/** Keep the latest value for later calls, so that a new callback does not cause a reconnect. */
function useLatest<Value>(value: Value): { readonly current: Value } {
  const latest = useRef(value);
  // Set it in the commit of the render, because an effect would run later.
  useInsertionEffect(() => {
    latest.current = value;
  });
  return latest;
}

/** The state of a hook's room, over all of its connections. */
class RoomStore<Value> extends Store<Value> {
  private readonly position = new Position(undefined);
  private resume: string | undefined;
  private after: string | undefined;

  /** Return the start of the next connection: the position of the last one, unless `after` has changed. */
  start(after: string | undefined): string | undefined {
    if (this.after !== after) this.resume = undefined;
    this.after = after;
    return this.resume ?? after;
  }
  /** Remember the position of a connection that has ended. */
  end({ resume }: Subscription): void {
    this.resume = resume ?? this.resume;
  }
  isNew = (notification: { id?: string }) => this.position.isNew(notification as never);
}

/**
 * Reconnect when a rejected token that is a string is replaced. A token function needs no such handling, because
 * it is called before each connection.
 */
function useNewToken(token: SubscribeOptions["token"], current: { readonly current: Subscription | null }): void {
  const fixed = typeof token === "string" ? token : undefined;
  useEffect(() => {
    const { status, error } = current.current?.state ?? {};
    if (fixed && status === "closed" && error) current.current?.reconnect();
  }, [fixed, current]);
}

/**
 * Subscribe to a user's room, or to a request's.
 *
 * ```tsx
 * const { lastMessage, isConnected } = useSynapRealtime({ userId: "42", token: () => fetchToken() });
 * ```
 *
 * @throws TypeError it names the invalid option.
 */
export function useSynapRealtime<Data extends object = NotificationData>(
  options: RealtimeOptions<Data>,
): UseSynapRealtimeReturn<Data> {
  const { userId, requestId, autoConnect = true, shared = false, after, maxReconnects, device, presence } = options;
  const url = options.url ?? options.realtimeUrl;
  check(options);
  baseOf(url, options.url === undefined && url !== undefined ? "realtimeUrl" : "url");
  const own = roomOf("user", userId);
  const room = (requestId ?? null) === null ? own : roomOf("request", requestId);
  const latest = useLatest(options);
  const current = useRef<Subscription | null>(null);
  // A new room gets a new store, so that no render shows messages of the old room.
  const store = useMemo(() => new RoomStore(initialState<Data>()), [room, url]);
  const seen = useSyncExternalStore(store.subscribe, store.get, store.get);

  const connect = useCallback(() => {
    if (current.current) {
      const { status } = current.current.state;
      if (status === "reconnecting" || status === "closed") current.current.reconnect();
      return;
    }
    let wasOpen = false;
    const { acknowledge, persist } = latest.current;
    current.current = (shared ? subscribeShared : subscribe)(room, {
      url, maxReconnects, device, presence, acknowledge, persist,
      after: store.start(after),
      get token() {
        return latest.current.token;
      },
      onNotification: (notification) => {
        if (!store.isNew(notification)) return;
        const message = notification as unknown as NotificationMessage<Data>;
        const all = [...store.value.messages, message];
        const messages = all.slice(Math.max(0, all.length - (latest.current.maxMessages ?? 100)));
        store.set({ ...store.value, lastMessage: message, messages });
        latest.current.onMessage?.(message);
      },
      onStateChange: ({ status, error: why }) => {
        const error = why ? errorEvent(why.message, why.code, why.retriable) : null;
        store.set({ ...store.value, status, error: status === "connecting" ? store.value.error : error });
        if (error) latest.current.onError?.(error);
        if ((status === "open") === wasOpen) return;
        wasOpen = !wasOpen;
        if (wasOpen) latest.current.onConnect?.();
        else latest.current.onDisconnect?.();
      },
      onGap: (gap) => latest.current.onGap?.(gap),
      onPresence: (presence) => latest.current.onPresence?.(presence),
    });
    store.set({ ...store.value, status: "connecting" });
  }, [room, url, shared, after, maxReconnects, device, presence, store, latest]);

  const disconnect = useCallback(() => {
    const subscription = current.current;
    current.current = null;
    if (!subscription) return;
    const wasOpen = subscription.state.status === "open";
    store.end(subscription);
    subscription.close();
    store.set({ ...store.value, status: "closed" });
    if (wasOpen) latest.current.onDisconnect?.();
  }, [store, latest]);

  useEffect(() => {
    if (autoConnect) connect();
    return disconnect;
  }, [autoConnect, connect, disconnect]);
  useNewToken(options.token, current);

  const sendMessage = useCallback((message: string) => current.current?.send(message), []);
  return {
    ...seen,
    isConnected: seen.status === "open",
    connect,
    disconnect,
    sendMessage,
  };
}

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
  private connection: Status = "closed";
  private connectionError: RealtimeErrorEvent | null = null;

  constructor() {
    super({ ...IDLE, connection: "closed", connectionError: null });
  }
  connected(connection: Status, connectionError: RealtimeErrorEvent | null): void {
    this.connection = connection;
    this.connectionError = connection === "connecting" ? this.connectionError : connectionError;
    this.show();
  }
  show(): void {
    const { connection, connectionError, tracker } = this;
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
        job.connected(status, error ? errorEvent(error.message, error.code, error.retriable) : null);
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

  const state = useSyncExternalStore(job.subscribe, job.get, job.get);
  const reconnect = useCallback(() => current.current?.reconnect(), []);
  return useMemo(() => ({ ...state, reconnect }), [state, reconnect]);
}
