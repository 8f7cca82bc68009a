/** `useSynapRealtime`: a user's room, or a request's. */
import { useCallback, useEffect, useMemo, useRef } from "react";
import type { NotificationMessage } from "../message.js";
import { baseOf, check, roomOf, type SubscribeOptions } from "../options.js";
import { subscribeShared } from "../tabs.js";
import type { Status, Subscription } from "../state.js";
import { subscribe } from "../subscription.js";
import type { NotificationData } from "../types.js";
import { useLatest, useNewToken, useValue } from "./effects.js";
import { useServer } from "./provider.js";
import { errorEvent, RoomStore, type RealtimeErrorEvent } from "./store.js";

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
  given: RealtimeOptions<Data>,
): UseSynapRealtimeReturn<Data> {
  const options = useServer(given, given.url ?? given.realtimeUrl);
  const { userId, requestId, autoConnect = true, shared = false, after, maxReconnects, device, presence } = options;
  const { url } = options;
  check(options);
  baseOf(url, given.url === undefined && given.realtimeUrl !== undefined ? "realtimeUrl" : "url");
  const own = roomOf("user", userId);
  const room = (requestId ?? null) === null ? own : roomOf("request", requestId);
  const latest = useLatest(options);
  const current = useRef<Subscription | null>(null);
  // A new room gets a new store, so that no render shows messages of the old room.
  const store = useMemo(() => new RoomStore(initialState<Data>()), [room, url]);
  const seen = useValue(store);

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
        const error = errorEvent(why);
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
