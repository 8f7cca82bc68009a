/** React: `useSynapRealtime` for a room, `useJob` for a request. */
import { useCallback, useEffect, useInsertionEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { IDLE, JobTracker, type JobState } from "./job.js";
import type { NotificationMessage } from "./message.js";
import { baseOf, check, roomOf } from "./options.js";
import { Position } from "./position.js";
import { subscribe, type Status, type SubscribeOptions, type Subscription } from "./subscription.js";
import { subscribeShared } from "./shared.js";
import type { NotificationData } from "./types.js";

export type { JobState, NotificationMessage };

/** An `Event`, as the report's hook gives it, that says what is wrong. */
export interface RealtimeErrorEvent extends Event {
  readonly message: string;
  /** A close code, or the HTTP status of a refused request. */
  readonly code?: number;
  /** Whether another attempt may succeed. */
  readonly retriable: boolean;
}

export interface RealtimeOptions<Data extends object = NotificationData>
  extends Omit<SubscribeOptions, "onNotification" | "onState"> {
  userId: string;
  /** Listen to this request's room, and not to the user's. */
  requestId?: string | undefined;
  /** As `url`; the report's name. */
  realtimeUrl?: string | undefined;
  /** Connect when it is mounted; true. */
  autoConnect?: boolean | undefined;
  /** One connection for all tabs. */
  shared?: boolean | undefined;
  /** How many of the last messages are in `messages`; 100. */
  maxMessages?: number | undefined;
  onMessage?: ((message: NotificationMessage<Data>) => void) | undefined;
  onError?: ((error: RealtimeErrorEvent) => void) | undefined;
  onConnect?: (() => void) | undefined;
  onDisconnect?: (() => void) | undefined;
}

export interface UseSynapRealtimeReturn<Data extends object = NotificationData> {
  lastMessage: NotificationMessage<Data> | null;
  /** The last ones, oldest first. */
  messages: readonly NotificationMessage<Data>[];
  isConnected: boolean;
  status: Status;
  error: RealtimeErrorEvent | null;
  /** Connect, also after it was given up. */
  connect: () => void;
  disconnect: () => void;
  sendMessage: (message: string) => void;
}

/** A timer of more, about 25 days, would end at once. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Something that components read while it changes. */
class Store<Value> {
  private readonly listeners = new Set<() => void>();
  constructor(public value: Value) {}
  readonly get = () => this.value;
  readonly subscribe = (reader: () => void) => {
    this.listeners.add(reader);
    return () => void this.listeners.delete(reader);
  };
  set(value: Value): void {
    this.value = value;
    for (const reader of this.listeners) reader();
  }
}

interface Seen<Data extends object> {
  lastMessage: NotificationMessage<Data> | null;
  messages: readonly NotificationMessage<Data>[];
  status: Status;
  error: RealtimeErrorEvent | null;
}

/** What the next render shows on a server, and before anything has happened. */
const nothing = <Data extends object>(): Seen<Data> => ({
  lastMessage: null,
  messages: [],
  status: "closed",
  error: null,
});

function errorEvent(message: string, code: number | undefined, retriable: boolean): RealtimeErrorEvent {
  const event = typeof Event === "undefined" ? { type: "error" } : new Event("error");
  return Object.assign(event, { message, code, retriable }) as RealtimeErrorEvent;
}

/** The latest value, for what is called later: a new callback is no reason to reconnect. */
function useLatest<Value>(value: Value): { readonly current: Value } {
  const latest = useRef(value);
  // With the render that has it, and not some time later, as an effect would be.
  useInsertionEffect(() => {
    latest.current = value;
  });
  return latest;
}

/** What a hook has seen of a room, over all of its connections. */
class Memory<Value> extends Store<Value> {
  private readonly position = new Position(undefined);
  private resume: string | undefined;
  private after: string | undefined;

  /** Where the next connection starts: where the last one ended, unless another start is asked for. */
  start(after: string | undefined): string | undefined {
    if (this.after !== after) this.resume = undefined;
    this.after = after;
    return this.resume ?? after;
  }
  /** A connection of ours has ended. */
  end({ resume }: Subscription): void {
    this.resume = resume ?? this.resume;
  }
  isNew = (notification: { id?: string }) => this.position.isNew(notification as never);
}

/**
 * Dial anew when a token that is a string is replaced, where the old one was refused; a function is asked at
 * each dial.
 */
function useNewToken(token: SubscribeOptions["token"], current: { readonly current: Subscription | null }): void {
  const fixed = typeof token === "string" ? token : undefined;
  useEffect(() => {
    const { status, error } = current.current?.state ?? {};
    if (fixed && status === "closed" && error) current.current?.reconnect();
  }, [fixed, current]);
}

/**
 * Listen to a user's room, or to a request's.
 *
 * ```tsx
 * const { lastMessage, isConnected } = useSynapRealtime({ userId: "42", token: () => fetchToken() });
 * ```
 *
 * @throws TypeError names the option that is wrong.
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
  // Another room's messages are never shown, not even for one frame.
  const store = useMemo(() => new Memory(nothing<Data>()), [room, url]);
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
      onPresence: (who) => latest.current.onPresence?.(who),
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

/** How a job stands, and how the connection does that says so: two things, of which either may fail alone. */
export interface UseJobReturn<Result = Record<string, unknown>> extends JobState<Result> {
  /** `reconnecting`: the connection is lost, and will be tried again. After the job's end it is `closed`. */
  connection: Status;
  connectionError: RealtimeErrorEvent | null;
  /** Connect now, also after `disconnected`. */
  reconnect: () => void;
}

/** Of one job, over all connections. */
class Following<Result> extends Memory<Omit<UseJobReturn<Result>, "reconnect">> {
  readonly view = new JobTracker<Result>();
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
    const { connection, connectionError, view } = this;
    const isRefused = connection === "closed" && connectionError && !view.isOver;
    this.set({ ...view.state, ...(isRefused && { status: "disconnected" }), connection, connectionError });
  }
}

/**
 * Follow one request's job to its end, also if that was before this component was there.
 *
 * ```tsx
 * const { status, progress, text } = useJob(requestId, { token });
 * ```
 *
 * @param requestId nothing: `idle`.
 * @throws TypeError names the option that is wrong.
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
  const job = useMemo(() => new Following<Result>(), [room, url]);

  useEffect(() => {
    const { view } = job;
    if (!room || view.isOver) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    /** Only who is connected can say that the job is silent. */
    const awaitStall = () => {
      clearTimeout(timer);
      if (!view.stallAfterMs || subscription.state.status !== "open") return;
      timer = setTimeout(() => {
        view.markStalled();
        job.show();
      }, Math.min(view.stallAfterMs, LONGEST_TIMER_MS));
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
        view.apply(notification);
        job.show();
        awaitStall();
        if (!view.isOver) return;
        subscription.close();
        job.connected("closed", null);
      },
      onStateChange: ({ status, error }) => {
        job.connected(status, error ? errorEvent(error.message, error.code, error.retriable) : null);
        awaitStall();
      },
      onGap: () => {
        view.gap();
        job.show();
      },
    });
    current.current = subscription;
    return () => {
      clearTimeout(timer);
      job.end(subscription);
      subscription.close();
      if (!view.isOver) job.connected("closed", null);
    };
  }, [room, url, job, latest]);
  useNewToken(options.token, current);

  const state = useSyncExternalStore(job.subscribe, job.get, job.get);
  const reconnect = useCallback(() => current.current?.reconnect(), []);
  return useMemo(() => ({ ...state, reconnect }), [state, reconnect]);
}
