/** `useSynapRealtime`: a user's room, or a request's. */
import type { NotificationMessage } from "../message.js";
import { baseOf, roomOf, type SubscribeOptions } from "../options.js";
import { Position } from "../position.js";
import { subscribeShared } from "../tabs.js";
import type { Status, Subscription } from "../state.js";
import { subscribe } from "../subscription.js";
import type { NotificationData } from "../types.js";
import { useModel, type Client } from "./model.js";
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
  const { userId, requestId, realtimeUrl, autoConnect, shared, after, maxReconnects, device, presence } = given;
  if (given.url === undefined && realtimeUrl) baseOf(realtimeUrl, "realtimeUrl");
  const options = { ...given, url: given.url ?? realtimeUrl, enabled: autoConnect };
  const own = roomOf("user", userId);
  const room = (requestId ?? null) === null ? own : roomOf("request", requestId);
  const create = ({ latest, open }: Client<RealtimeOptions<Data>>) => {
    const position = new Position(undefined);
    let subscription: Subscription | undefined;
    let start: string | undefined; // of the first connection
    let resume: string | undefined; // where the last connection has ended

    const connect = () => {
      if (subscription) {
        const { status } = subscription.state;
        if (status === "reconnecting" || status === "closed") subscription.reconnect();
        return;
      }
      const { after, shared } = latest.current;
      if (start !== after) resume = undefined;
      start = after;
      const more: SubscribeOptions = {
        ...latest.current,
        after: resume ?? after,
        onNotification: (notification) => {
          if (!position.isNew(notification as never)) return;
          const lastMessage = notification as unknown as NotificationMessage<Data>;
          const all = [...store.get().messages, lastMessage];
          store.set({ lastMessage, messages: all.slice(Math.max(0, all.length - (latest.current.maxMessages ?? 100))) });
          latest.current.onMessage?.(lastMessage);
        },
        onStateChange: (state) => {
          const error = errorEvent(state, store.get().error);
          const { isConnected } = store.get();
          show(state.status, error);
          if (state.error) latest.current.onError?.(error!);
          if (isConnected === (state.status === "open")) return;
          if (isConnected) latest.current.onDisconnect?.();
          else latest.current.onConnect?.();
        },
        onGap: (gap) => latest.current.onGap?.(gap),
        onPresence: (presence) => latest.current.onPresence?.(presence),
      };
      subscription = open(room, more, shared ? subscribeShared : subscribe);
      show("connecting");
    };
    const disconnect = () => {
      if (!subscription) return;
      const { isConnected } = store.get();
      resume = subscription.resume ?? resume;
      subscription.close();
      subscription = undefined;
      show("closed");
      if (isConnected) latest.current.onDisconnect?.();
    };
    const store = createStore<UseSynapRealtimeReturn<Data>>({
      lastMessage: null, messages: [], isConnected: false, status: "closed", error: null, connect, disconnect,
      sendMessage: (message) => subscription?.send(message),
    });
    const show = (status: Status, error = store.get().error) => store.set({ status, isConnected: status === "open", error });
    return {
      store,
      start: () => {
        connect();
        return disconnect;
      },
    };
  };
  return useModel(options, [room], create, [shared, after, maxReconnects, device, presence]);
}
