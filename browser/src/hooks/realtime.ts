/** `useSynapRealtime`: a user's room, or a request's. */
import { useEffect, useMemo } from "react";
import type { NotificationMessage } from "../message.js";
import { roomOf, type SubscribeOptions } from "../options.js";
import { Position } from "../position.js";
import { subscribeShared } from "../tabs.js";
import type { Status } from "../state.js";
import { subscribe } from "../subscription.js";
import type { NotificationData } from "../types.js";
import { useSubscription, useView } from "./effects.js";
import { createStore, errorEvent, type RealtimeErrorEvent } from "./store.js";

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

type RoomState<Data extends object> = Pick<UseSynapRealtimeReturn<Data>, "lastMessage" | "messages" | "status" | "error">;

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
  const { options, url, latest, current, open } = useSubscription(
    given, given.url ?? given.realtimeUrl, given.url === undefined && given.realtimeUrl !== undefined ? "realtimeUrl" : "url",
  );
  const { userId, requestId, autoConnect = true, shared = false, after, maxReconnects, device, presence } = options;
  const own = roomOf("user", userId);
  const room = (requestId ?? null) === null ? own : roomOf("request", requestId);
  // A new room gets a new store, so that no render shows messages of the old room.
  const [store, position] = useMemo(
    () => [createStore<RoomState<Data>>({ lastMessage: null, messages: [], status: "closed", error: null }), new Position(undefined)],
    [room, url],
  );
  /** Where the next connection starts: where the last one ended, unless `after` has changed. */
  const next = useMemo(() => ({ after }), [store, after]);

  const actions = useMemo(() => {
    const connect = () => {
      if (current.current) {
        const { status } = current.current.state;
        if (status === "reconnecting" || status === "closed") current.current.reconnect();
        return;
      }
      let wasOpen = false;
      const { acknowledge, persist } = latest.current;
      const subscribeTo = shared ? subscribeShared : subscribe;
      const more: SubscribeOptions = {
        maxReconnects, device, presence, acknowledge, persist,
        after: next.after,
        onNotification: (notification) => {
          if (!position.isNew(notification as never)) return;
          const lastMessage = notification as unknown as NotificationMessage<Data>;
          const all = [...store.get().messages, lastMessage];
          store.set({ lastMessage, messages: all.slice(Math.max(0, all.length - (latest.current.maxMessages ?? 100))) });
          latest.current.onMessage?.(lastMessage);
        },
        onStateChange: (state) => {
          const { status } = state;
          const error = errorEvent(state, store.get().error);
          store.set({ status, error });
          if (state.error) latest.current.onError?.(error!);
          if ((status === "open") === wasOpen) return;
          wasOpen = !wasOpen;
          if (wasOpen) latest.current.onConnect?.();
          else latest.current.onDisconnect?.();
        },
        onGap: (gap) => latest.current.onGap?.(gap),
        onPresence: (presence) => latest.current.onPresence?.(presence),
      };
      open(room, more, subscribeTo);
      store.set({ status: "connecting" });
    };
    const disconnect = () => {
      const subscription = current.current;
      current.current = null;
      if (!subscription) return;
      const wasOpen = subscription.state.status === "open";
      next.after = subscription.resume ?? next.after;
      subscription.close();
      store.set({ status: "closed" });
      if (wasOpen) latest.current.onDisconnect?.();
    };
    return { connect, disconnect, sendMessage: (message: string) => current.current?.send(message) };
  }, [next, shared, maxReconnects, device, presence]);

  useEffect(() => {
    if (autoConnect) actions.connect();
    return actions.disconnect;
  }, [autoConnect, actions]);

  const seen = useView(store);
  return { ...seen, ...actions, isConnected: seen.status === "open" };
}
