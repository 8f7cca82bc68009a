/** React: `useSynapRealtime` for a room, `useJob` for a request. */
import { useCallback, useEffect, useInsertionEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { IDLE, JobView, type JobState } from "./job.js";
import type { NotificationMessage } from "./message.js";
import { subscribe, tokenOf, type Status, type SubscribeOptions, type Subscription } from "./socket.js";
import { subscribeShared } from "./tabs.js";
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
  keep?: number | undefined;
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
  private readonly readers = new Set<() => void>();
  constructor(public value: Value) {}
  readonly get = () => this.value;
  readonly read = (reader: () => void) => {
    this.readers.add(reader);
    return () => void this.readers.delete(reader);
  };
  set(value: Value): void {
    this.value = value;
    for (const reader of this.readers) reader();
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

/**
 * Listen to a user's room, or to a request's.
 *
 * ```tsx
 * const { lastMessage, isConnected } = useSynapRealtime({ userId: "42", token: () => fetchToken() });
 * ```
 */
export function useSynapRealtime<Data extends object = NotificationData>(
  options: RealtimeOptions<Data>,
): UseSynapRealtimeReturn<Data> {
  const { userId, requestId, autoConnect = true, shared = false, after, attempts, device, presence } = options;
  const url = options.url ?? options.realtimeUrl;
  const room = requestId ? `request_${requestId}` : `user_${userId}`;
  const latest = useLatest(options);
  const current = useRef<Subscription | null>(null);
  // Another room's messages are never shown, not even for one frame.
  const store = useMemo(() => new Store(nothing<Data>()), [room, url]);
  const seen = useSyncExternalStore(store.read, store.get, store.get);

  const connect = useCallback(() => {
    if (current.current) {
      const { status } = current.current.state;
      if (status === "waiting" || status === "closed") current.current.reconnect();
      return;
    }
    let wasOpen = false;
    const { acknowledge, persist } = latest.current;
    current.current = (shared ? subscribeShared : subscribe)(room, {
      url, after, attempts, device, presence, acknowledge, persist,
      token: () => tokenOf(latest.current),
      onNotification: (notification) => {
        const message = notification as unknown as NotificationMessage<Data>;
        const all = [...store.value.messages, message];
        const messages = all.slice(Math.max(0, all.length - (latest.current.keep ?? 100)));
        store.set({ ...store.value, lastMessage: message, messages });
        latest.current.onMessage?.(message);
      },
      onState: ({ status, error: why }) => {
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
  }, [room, url, shared, after, attempts, device, presence, store, latest]);

  const disconnect = useCallback(() => {
    const subscription = current.current;
    current.current = null;
    if (!subscription) return;
    const wasOpen = subscription.state.status === "open";
    subscription.close();
    store.set({ ...store.value, status: "closed" });
    if (wasOpen) latest.current.onDisconnect?.();
  }, [store, latest]);

  useEffect(() => {
    if (autoConnect) connect();
    return disconnect;
  }, [autoConnect, connect, disconnect]);

  const sendMessage = useCallback((message: string) => current.current?.send(message), []);
  return {
    ...seen,
    isConnected: seen.status === "open",
    connect,
    disconnect,
    sendMessage,
  };
}

/**
 * Follow one request's job to its end, also if that was before this component was there.
 *
 * ```tsx
 * const { status, progress, text } = useJob(requestId, { token });
 * ```
 *
 * @param requestId nothing: `idle`.
 */
export function useJob<Result = Record<string, unknown>>(
  requestId: string | null | undefined,
  options: Pick<SubscribeOptions, "url" | "token"> = {},
): JobState<Result> {
  const latest = useLatest(options);
  const { url } = options;
  const store = useMemo(() => new Store<JobState<Result>>(IDLE), [requestId, url]);

  useEffect(() => {
    if (!requestId) return;
    const view = new JobView<Result>();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const subscription = subscribe(`request_${requestId}`, {
      url,
      token: () => tokenOf(latest.current),
      after: "earliest",
      attempts: Infinity,
      onNotification: (notification) => {
        view.hear(notification);
        store.set(view.state);
        clearTimeout(timer);
        if (view.isOver) subscription.close();
        else if (view.stallAfterMs)
          timer = setTimeout(() => {
            view.stall();
            store.set(view.state);
          }, Math.min(view.stallAfterMs, LONGEST_TIMER_MS));
      },
      onState: ({ status, error }) => {
        if (status === "closed" && error && !view.isOver)
          store.set({ ...view.state, status: "error", error: error.message });
      },
    });
    return () => {
      clearTimeout(timer);
      subscription.close();
    };
  }, [requestId, url, store, latest]);

  return useSyncExternalStore(store.read, store.get, store.get);
}
