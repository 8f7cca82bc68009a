/** `useSynapRealtime`: a user's room, or a request's. */
import type { NotificationMessage } from "../message.js";
import { baseOf, roomOf, type SubscribeOptions } from "../options.js";
import { Position } from "../position.js";
import { subscribeShared } from "../tabs.js";
import type { State, Status } from "../state.js";
import { subscribe } from "../subscription.js";
import type { NotificationData } from "../types.js";
import { useModel, type Client, type Model, type RealtimeErrorEvent } from "./model.js";

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
  if (!given.url && realtimeUrl) baseOf(realtimeUrl, "realtimeUrl");
  const options = { ...given, url: given.url ?? realtimeUrl, enabled: autoConnect };
  let room = roomOf("user", userId);
  if (requestId != null) room = roomOf("request", requestId);
  type Shown = UseSynapRealtimeReturn<Data>;
  const create = (client: Client<RealtimeOptions<Data>, Shown>): Model<Shown> => {
    const position = new Position(undefined);
    return {
      room,
      subscribe: (room: string, own: RealtimeOptions<Data>) =>
        (own.shared ? subscribeShared : subscribe)(room, own as SubscribeOptions),
      value: {
        lastMessage: null, messages: [], isConnected: false, status: "closed", error: null,
        connect: client.connect,
        disconnect: client.close,
        sendMessage: (message) => client.subscription?.send(message),
      },
      onState: (status, error) => {
        const { isConnected: wasConnected, error: last } = client.value;
        const { onConnect, onDisconnect, onError } = client.latest;
        const isConnected = status === "open";
        client.set({ status, isConnected, error });
        if (error && error !== last) onError?.(error);
        if (isConnected !== wasConnected) (isConnected ? onConnect : onDisconnect)?.();
      },
      onNotification: (notification) => {
        if (!position.isNew(notification)) return;
        const lastMessage = notification as unknown as NotificationMessage<Data>;
        const { onMessage, maxMessages = 100 } = client.latest;
        const all = [...client.value.messages, lastMessage];
        client.set({ lastMessage, messages: maxMessages > 0 ? all.slice(-maxMessages) : [] });
        onMessage?.(lastMessage);
      },
      onGap: (gap) => client.latest.onGap?.(gap),
      onPresence: (presence) => client.latest.onPresence?.(presence),
    };
  };
  return useModel(options, [room], create, [shared, after, maxReconnects, device, presence]);
}
