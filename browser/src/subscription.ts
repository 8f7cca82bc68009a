/** A subscription to one room. It connects, resumes after a loss, and renews its token, until it is closed. */
import { createConnector } from "./connect.js";
import type { Connection } from "./connection.js";
import type { NotificationMessage } from "./message.js";
import { baseOf, check, checkRoom, type SubscribeOptions } from "./options.js";
import { observePage } from "./page.js";
import { createPersistence } from "./persistence.js";
import { order, Position } from "./position.js";
import {
  isUnauthorized, type ControlFrame, type Delivered, type Failure, type Presence,
} from "./protocol.js";
import { ReconnectPolicy } from "./reconnect.js";
import { call, RealtimeError, type State, type Subscription } from "./state.js";
import { createTimer } from "./timer.js";
import { createRenewal } from "./token.js";

/**
 * Subscribe to a room.
 *
 * ```ts
 * const subscription = subscribe("user_42", { token, onNotification: ({ type, data }) => … });
 * ```
 *
 * @throws TypeError it names the invalid argument or option.
 */
export function subscribe(room: string, options: SubscribeOptions = {}): Subscription {
  checkRoom(room);
  check(options);
  const { maxReconnects = 5, device, after } = options;
  const base = baseOf(options.url);
  const policy = new ReconnectPolicy(maxReconnects);
  const retryTimer = createTimer();
  let position = new Position(after);
  let state: State = { status: "connecting" };
  let isClosed = false;
  let connection: Connection | undefined; // while it is open
  let openedAt: number; // of the last connection
  let received: string | undefined; // the cursor of the last notification

  const setState = (next: State) => {
    state = next;
    call(options.onStateChange, state);
  };
  const persistence = createPersistence(options.persist, `synap:${base}:${room}`, () => position.cursor);
  const ready = after ? undefined : persistence.load().then(
    (cursor) => void (position = new Position(cursor)),
    () => undefined,
  );

  // ---- the open connection ----

  const acknowledge = () => options.acknowledge !== false && connection?.acknowledge(received);

  const handleControl = ({ control, data }: ControlFrame) => {
    if (control === "synap.subscribed") {
      const hasGap = data.recovered === false && position.reportsGaps;
      position.replayComplete(data.cursor);
      if (hasGap) received = position.cursor; // the log of the last one may be gone
      acknowledge(); // the last connection may have ended before its acknowledgement was sent
      void persistence.save();
      if (hasGap) call(options.onGap, room);
    } else if (control === "synap.presence") {
      call(options.onPresence, data as unknown as Presence);
    } else if (control === "synap.token_expiring" && state.transport !== "sse") {
      renewal.start(Date.parse(String(data.expiresAt)), data.room as string); // a stream cannot renew its token
    }
  };

  const onNotification = (notification: Delivered) => {
    // A replay for another subscription of the page, which shares the room.
    if (order(notification.cursor, position.cursor) <= 0) return;
    position.moveTo(notification.cursor);
    received = position.cursor;
    if (position.isNew(notification)) call(options.onNotification, notification as NotificationMessage);
    if (isClosed) return;
    acknowledge();
    persistence.saveSoon();
  };

  const connectionLost = (failure: Failure) => {
    const wasOpen = !!connection;
    const upMs = wasOpen ? Date.now() - openedAt : 0;
    disconnect();
    const before = state;
    const hasUnreportedGap = wasOpen && position.lost();
    // If the token had expired before it arrived, the function may return a newer one.
    const hasFunction = typeof options.token === "function";
    const isExpired = hasFunction && /\bexpired\b/.test(failure.reason);
    const isFinal = failure.isFinal && !(isExpired && isUnauthorized(failure.code));
    if (hasUnreportedGap) call(options.onGap, room);
    if (state !== before) return; // the callback has closed or reconnected
    const delayMs = isFinal ? undefined : policy.delayAfter(failure, upMs);
    const reason = failure.reason.replace(/^no credential/, hasFunction ? "$& from token()" : "$&");
    const error = new RealtimeError(reason, failure.code, !isFinal);
    if (delayMs === undefined) return setState({ status: "closed", error });
    // Start the timer first, because the callback may close or reconnect.
    retryTimer.start(delayMs, connect);
    setState({ status: "reconnecting", error, attempt: policy.count, delayMs });
  };

  const wanted = {
    base,
    room,
    options,
    query: () => ({ after: position.after, device, presence: options.presence ? "1" : undefined }),
  };
  const connector = createConnector(wanted, {
    onOpen: (hasControl, opened) => {
      openedAt = Date.now();
      connection = opened;
      position.connected(hasControl);
      setState({ status: "open", transport: opened.kind });
    },
    onMessage: (message) => ("control" in message ? handleControl(message) : onNotification(message)),
    onEnd: connectionLost,
  });
  const renewal = createRenewal(options, connector.authenticate);

  const disconnect = () => {
    retryTimer.stop();
    connection = undefined;
    renewal.stop();
    connector.close();
  };

  // ---- connecting ----

  /** @param isDead the open connection is not to be used again. */
  const connect = (isDead?: boolean) => {
    void connector.open(ready, policy.count, isDead);
    retryTimer.stop();
    connection = undefined;
    renewal.stop();
    setState({ status: "connecting" });
  };
  const reconnect = () => {
    policy.count = 0;
    connect(!!connection);
  };

  /** Reconnect, or ping an open connection, when the network or the tab is back. */
  const wake = (isRestored?: boolean) => {
    // When the page is restored, `onclose` may not have been called yet.
    if (state.status === "open") isRestored ? connect(true) : connection?.wake();
    else if (state.error?.retriable) reconnect();
  };
  const stopObserving = observePage(wake, persistence.save);

  // After the caller has received the subscription, because callbacks may use it.
  queueMicrotask(() => isClosed || connect());
  return {
    room,
    get state() {
      return state;
    },
    get cursor() {
      return position.cursor;
    },
    get resume() {
      return position.resume;
    },
    send: connector.send,
    reconnect: () => isClosed || reconnect(),
    close: () => {
      if (isClosed) return;
      isClosed = true;
      disconnect();
      void persistence.save();
      stopObserving();
      state = { status: "closed" };
    },
  };
}
