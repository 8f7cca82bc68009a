/**
 * One subscription for several tabs: the leader, which holds a lock, forwards its notifications to the others. This
 * module is loaded only by pages that use it.
 */
import type { SubscribeOptions } from "./options.js";
import { Position } from "./position.js";
import type { NotificationMessage } from "./message.js";
import { call, type State, type Subscription } from "./state.js";
import { subscribe } from "./subscription.js";

/** Notifications that the leader keeps for tabs that are opened later. */
const MAX_BUFFERED = 500;
/** A tab whose leader does not answer within this time, because it is frozen, opens its own connection. */
const ANSWER_WITHIN_MS = 2_000;

/**
 * What a tab does: it waits for the leader's answer, it receives the leader's notifications, it has a connection of
 * its own because the leader does not answer, or it is the leader.
 */
type Role = "joining" | "following" | "alone" | "leading";

/** Messages between tabs. */
type TabMessage =
  | { hello: string }
  | ({ to: string } & Answer)
  | { leads: true }
  | { notification: NotificationMessage }
  | { state: State }
  | { gap: true }
  | { send: string }
  | { reconnect: true };

interface Answer {
  state: State;
  /** The leader's notifications, oldest first; all of the room's if `isAll`. */
  buffered: NotificationMessage[];
  isAll: boolean;
  cursor: string | undefined;
}

/** See `subscribeShared`. The browser has `navigator.locks` and `BroadcastChannel`. */
export function shareRoom(room: string, options: SubscribeOptions = {}): Subscription {
  const { locks } = navigator;
  const name = `synap:${options.url ?? ""}:${room}:${options.device ?? ""}`;
  const tabId = Math.random().toString(36).slice(2);
  const channel = new BroadcastChannel(name);
  const stop = new AbortController();
  // A request's room is read from its beginning. Another room is read from now on, because the leader has
  // already shown what was retained for the user.
  let start = options.after ?? (room.startsWith("request_") ? "earliest" : "latest");
  const position = new Position(options.after);
  let role: Role = "joining";
  let inner: Subscription | undefined; // of a tab that is alone or leads
  let state: State = { status: "connecting" };
  let buffered: NotificationMessage[] = [];
  let isAll = start === "earliest";
  let pending: NotificationMessage[] = []; // received while joining

  const postToTabs = (message: TabMessage) => {
    if (role === "leading") channel.postMessage(message);
  };
  const setState = (next: State) => {
    state = next;
    if (!stop.signal.aborted) call(options.onStateChange, next);
  };
  const deliver = (notification: NotificationMessage) => {
    if (stop.signal.aborted) return;
    position.moveTo(notification.cursor);
    if (!position.isNew(notification as never)) return;
    buffered.push(notification);
    if (buffered.length > MAX_BUFFERED) {
      buffered.shift();
      isAll = false;
    }
    call(options.onNotification, notification);
  };

  /** Open our own connection, from our position. */
  const openConnection = (next: "alone" | "leading") => {
    // The previous leader has acknowledged these, so the server would not replay them.
    if (role === "joining" && start === "latest") pending.forEach(deliver);
    if (stop.signal.aborted) return;
    role = next;
    inner = subscribe(room, {
      ...options,
      get token() {
        return options.token; // a getter may return a new one each time
      },
      after: position.cursor ?? options.after,
      onStateChange: (next) => {
        postToTabs({ state: plain(next) });
        setState(next);
      },
      onNotification: (notification) => {
        postToTabs({ notification });
        deliver(notification);
      },
      onGap: () => {
        postToTabs({ gap: true });
        call(options.onGap, room);
      },
    });
  };

  const applyAnswer = (answer: Answer) => {
    const place = answer.buffered.findIndex(({ cursor }) => cursor === start);
    if (start === "earliest" ? !answer.isAll : start !== "latest" && place < 0) return openConnection("alone");
    role = "following";
    setState(answer.state);
    // Notifications that arrived before this answer are also in `buffered`.
    (start === "latest" ? pending : answer.buffered.slice(place + 1)).forEach(deliver);
    position.moveTo(answer.cursor);
  };

  channel.onmessage = ({ data }: MessageEvent<TabMessage>) => {
    if (stop.signal.aborted) return;
    if (role === "leading") {
      if ("hello" in data) postToTabs({ to: data.hello, state: plain(state), buffered, isAll, cursor: inner?.cursor });
      else if ("send" in data) inner?.send(data.send);
      else if ("reconnect" in data) inner?.reconnect();
    } else if (role === "joining") {
      if ("notification" in data) pending.push(data.notification);
      else if ("to" in data && data.to === tabId) applyAnswer(data);
    } else if (role === "following") {
      if ("notification" in data) deliver(data.notification);
      else if ("state" in data) setState(data.state);
      else if ("gap" in data) call(options.onGap, room);
      else if ("leads" in data) {
        start = position.cursor ?? start;
        join();
      }
    }
  };

  const becomeLeader = () => {
    if (stop.signal.aborted) return undefined; // otherwise the lock would never be released
    if (inner) {
      role = "leading";
      postToTabs({ leads: true }); // it had its own connection, and may have received more than the others
    } else openConnection("leading");
    // The lock is held until this tab is closed.
    return new Promise<unknown>((resolve) => void (stop.signal.onabort = resolve));
  };
  const join = () => {
    if (stop.signal.aborted) return;
    role = "joining";
    pending = [];
    channel.postMessage({ hello: tabId });
    setTimeout(() => role === "joining" && openConnection("alone"), ANSWER_WITHIN_MS);
  };
  void locks
    .request(name, { ifAvailable: true }, (lock) => (lock ? becomeLeader() : join()))
    // A leader gets here when it is closed; another tab waits here to become the leader.
    .then(() => (stop.signal.aborted ? undefined : locks.request(name, { signal: stop.signal }, becomeLeader)))
    .catch(() => inner ?? openConnection("alone")); // the tab was closed, or this page may not use locks

  const reconnect = () => {
    if (inner) inner.reconnect();
    else if (!stop.signal.aborted) channel.postMessage({ reconnect: true });
  };
  /** The leader cannot observe the visibility of this tab. */
  const onVisible = () => {
    if (!inner && document.visibilityState === "visible" && state.error?.retriable) reconnect();
  };
  globalThis.document?.addEventListener?.("visibilitychange", onVisible);

  return {
    room,
    get state() {
      return state;
    },
    get cursor() {
      return inner?.cursor ?? position.cursor;
    },
    get resume() {
      return inner?.resume ?? position.resume;
    },
    send: (text) => {
      if (inner) inner.send(text);
      else if (!stop.signal.aborted) channel.postMessage({ send: text });
    },
    reconnect,
    close: () => {
      if (stop.signal.aborted) return;
      stop.abort();
      inner?.close();
      channel.close();
      globalThis.document?.removeEventListener?.("visibilitychange", onVisible);
      state = { status: "closed" };
    },
  };
}

/** Copy the error: structured cloning between tabs loses its class and its properties. */
function plain(state: State): State {
  return state.error ? { ...state, error: { ...state.error, message: state.error.message } } : state;
}
