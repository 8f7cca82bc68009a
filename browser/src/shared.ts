/** One connection for several tabs: who holds the lock listens, and tells the others. */
import { baseOf, check, checkRoom } from "./options.js";
import { Position } from "./position.js";
import type { NotificationMessage } from "./message.js";
import { call, subscribe, type State, type SubscribeOptions, type Subscription } from "./subscription.js";

/** So many notifications are kept for a tab that comes later. */
const MAX_BUFFERED = 500;
/** A tab that holds the lock and does not answer for so long is asked no more. */
const ANSWER_WITHIN_MS = 2_000;

/** What tabs say to each other. */
type TabMessage =
  | { hello: string }
  | ({ to: string } & Answer)
  | { leads: true }
  | { notification: NotificationMessage }
  | { state: State }
  | { gap: true }
  | { say: string }
  | { dial: true };

interface Answer {
  state: State;
  /** What was heard so far, the oldest first; all that the room has if `isAll`. */
  kept: NotificationMessage[];
  isAll: boolean;
  cursor: string | undefined;
}

/**
 * As `subscribe`, with one connection for all tabs of this origin that ask for the same room with the same
 * options. Where a browser has no `navigator.locks` or no `BroadcastChannel`, each tab has its own; so has one
 * that asks for presence, because who is there is told once, at the beginning.
 *
 * When the tab that holds the connection goes, another resumes where it has come.
 */
export function subscribeShared(room: string, options: SubscribeOptions = {}): Subscription {
  checkRoom(room);
  check(options);
  baseOf(options.url);
  const locks = globalThis.navigator?.locks;
  if (!locks || typeof BroadcastChannel === "undefined" || options.presence) return subscribe(room, options);

  const name = `synap:${options.url ?? ""}:${room}:${options.device ?? ""}`;
  const me = Math.random().toString(36).slice(2);
  const channel = new BroadcastChannel(name);
  const stop = new AbortController();
  // Of a request's room everything is wanted, of another what comes from now on: the tab that leads has heard
  // what waited for the user.
  let wants = options.after ?? (room.startsWith("request_") ? "earliest" : "latest");
  const position = new Position(options.after);
  let inner: Subscription | undefined; // who has one leads, or stands alone
  let isLeader = false;
  let state: State = { status: "connecting" };
  let kept: NotificationMessage[] = [];
  let isAll = wants === "earliest";
  let pending: NotificationMessage[] | undefined = []; // what came before the answer to our hello
  let release = () => {};

  const tell = (word: TabMessage) => {
    if (isLeader) channel.postMessage(word);
  };
  const become = (next: State) => {
    state = next;
    if (!stop.signal.aborted) call(options.onStateChange, next);
  };
  const hear = (notification: NotificationMessage) => {
    if (stop.signal.aborted) return;
    position.moveTo(notification.cursor);
    if (!position.isNew(notification as never)) return;
    kept.push(notification);
    if (kept.length > MAX_BUFFERED) {
      kept.shift();
      isAll = false;
    }
    call(options.onNotification, notification);
  };

  /** Listen ourselves, from where we have come. */
  const listen = () => {
    if (stop.signal.aborted) return;
    // Who led has acknowledged them: they would not come again.
    if (wants === "latest") pending?.forEach(hear);
    pending = undefined;
    inner = subscribe(room, {
      ...options,
      get token() {
        return options.token; // it may be another one each time
      },
      after: position.cursor ?? options.after,
      onStateChange: (next) => {
        tell({ state: plain(next) });
        become(next);
      },
      onNotification: (notification) => {
        tell({ notification });
        hear(notification);
      },
      onGap: () => {
        tell({ gap: true });
        call(options.onGap, room);
      },
    });
  };

  const take = (answer: Answer) => {
    const place = answer.kept.findIndex(({ cursor }) => cursor === wants);
    if (wants === "earliest" ? !answer.isAll : wants !== "latest" && place < 0) return listen();
    // What came early is among what was kept.
    const missed = wants === "latest" ? pending : answer.kept.slice(place + 1);
    pending = undefined;
    become(answer.state);
    missed?.forEach(hear);
    position.moveTo(answer.cursor);
  };

  channel.onmessage = ({ data }: MessageEvent<TabMessage>) => {
    if (stop.signal.aborted) return;
    if (isLeader) {
      if ("hello" in data) tell({ to: data.hello, state: plain(state), kept, isAll, cursor: inner?.cursor });
      else if ("say" in data) inner?.send(data.say);
      else if ("dial" in data) inner?.reconnect();
    } else if (!inner) {
      if ("to" in data) {
        if (data.to === me && pending) take(data);
      } else if ("notification" in data) {
        if (pending) pending.push(data.notification);
        else hear(data.notification);
      } else if (pending) return;
      else if ("state" in data) become(data.state);
      else if ("gap" in data) call(options.onGap, room);
      else if ("leads" in data) {
        wants = position.cursor ?? wants;
        pending = [];
        ask();
      }
    }
  };

  const becomeLeader = () => {
    if (stop.signal.aborted) return undefined; // the lock would be held for ever
    isLeader = true;
    if (!inner) listen();
    else tell({ leads: true }); // it stood alone: the others may have heard less
    return new Promise<void>((resolve) => void (release = resolve));
  };
  const ask = () => {
    if (stop.signal.aborted) return;
    channel.postMessage({ hello: me });
    setTimeout(() => pending && !isLeader && listen(), ANSWER_WITHIN_MS);
  };
  const wait = { signal: stop.signal };
  void locks
    .request(name, { ifAvailable: true }, (lock) => (lock ? becomeLeader() : ask()))
    // Who leads comes here at its end; who asked waits for its turn.
    .then(() => (stop.signal.aborted ? undefined : locks.request(name, wait, becomeLeader)))
    .catch(() => inner ?? listen()); // it was closed, or this page may have no locks

  const reconnect = () => {
    if (inner) inner.reconnect();
    else if (!stop.signal.aborted) channel.postMessage({ dial: true });
  };
  /** The tab that leads does not see that somebody looks at this one. */
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
      else if (!stop.signal.aborted) channel.postMessage({ say: text });
    },
    reconnect,
    close: () => {
      if (stop.signal.aborted) return;
      stop.abort();
      inner?.close();
      channel.close();
      release();
      globalThis.document?.removeEventListener?.("visibilitychange", onVisible);
      state = { status: "closed" };
    },
  };
}

/** An error's own class does not pass between tabs; what it says does. */
function plain(state: State): State {
  return state.error ? { ...state, error: { ...state.error, message: state.error.message } } : state;
}
