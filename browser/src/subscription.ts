/** A subscription to one room. It connects, resumes after a loss, and renews its token, until it is closed. */
import { Backoff } from "./backoff.js";
import { baseOf, check, checkRoom, isCursor, isToken } from "./options.js";
import { Position } from "./position.js";
import type { ControlFrame, Delivered, Failure } from "./protocol.js";
import type { NotificationMessage } from "./message.js";
import { canStream, eventStream, webSocket, type TransportCallbacks, type Target, type Transport } from "./transports.js";

const PING_EVERY_MS = 30_000;
const PONG_WITHIN_MS = 10_000;
/** A proxy that blocks WebSockets may drop the handshake without a response. */
const OPEN_WITHIN_MS = 10_000;
const ACK_EVERY_MS = 500;
const SAVE_EVERY_MS = 1_000;
/** The bounds of the interval between renewals on one connection; between them, half of the remaining lifetime. */
const TOKEN_REFRESH_MS = [1_000, 10_000] as const;

/** `reconnecting`: the next attempt is scheduled; `closed`: there will be none. */
export type Status = "connecting" | "open" | "reconnecting" | "closed";

export interface State {
  status: Status;
  /** The transport of the open connection. */
  transport?: "websocket" | "sse";
  /** Why there is no connection. */
  error?: RealtimeError;
  /** The number of the next consecutive attempt, and the milliseconds until it. */
  attempt?: number;
  delayMs?: number;
}

export class RealtimeError extends Error {
  override readonly name = "RealtimeError";
  constructor(
    message: string,
    /** A close code (PROTOCOL.md, "Close codes") or the HTTP status of a rejected request. */
    readonly code?: number,
    /** Whether a retry can succeed. */
    readonly retriable = true,
  ) {
    super(message);
  }
}

/** Storage of the cursor: `localStorage`, or React Native's `AsyncStorage`. */
export interface CursorStorage {
  getItem(key: string): string | null | Promise<string | null>;
  setItem(key: string, value: string): unknown;
}

export interface PresentUser {
  user: string;
  connections: number;
  devices: string[];
}

export type Presence =
  | { event: "state"; users: PresentUser[] }
  | ({ event: "join" | "leave" | "update" } & PresentUser);

export interface SubscribeOptions {
  /** The URL of the room server, `https://…` or `wss://…`. Default: `NEXT_PUBLIC_REALTIME_URL`, else this machine. */
  url?: string | undefined;
  /** A token, or a function that returns one. It is called before each connection, and before the token expires. */
  token?: string | null | (() => string | null | undefined | Promise<string | null | undefined>) | undefined;
  /** The position to start from: a cursor, `earliest` or `latest`. Default: see PROTOCOL.md, "Subscribing". */
  after?: string | undefined;
  /** Consecutive attempts to reconnect. Default: 5. `Infinity` never gives up. */
  maxReconnects?: number | undefined;
  /** The name of this device. The server keeps a position in the room for each device of the user. */
  device?: string | undefined;
  /** Acknowledge notifications, so that the server does not replay them to the next connection. Default: true. */
  acknowledge?: boolean | undefined;
  /** Report the users who join and leave, to `onPresence`. */
  presence?: boolean | undefined;
  /** Keep the cursor across reloads. `true` uses `localStorage`. */
  persist?: boolean | CursorStorage | undefined;
  onNotification?: ((notification: NotificationMessage) => void) | undefined;
  onStateChange?: ((state: State) => void) | undefined;
  /** Notifications were missed that the server no longer retains: reload the state from your backend. */
  onGap?: ((room: string) => void) | undefined;
  onPresence?: ((presence: Presence) => void) | undefined;
}

export interface Subscription {
  readonly room: string;
  readonly state: State;
  /** The position after the last notification. */
  readonly cursor: string | undefined;
  /** The `after` of a later subscription that must not miss anything; undefined before the first notification. */
  readonly resume: string | undefined;
  /** Send a text to the server. Does nothing over Server-Sent Events. */
  send(text: string): void;
  /** Connect now, also after the last attempt has failed. */
  reconnect(): void;
  /** Close the subscription. No callback is called afterwards. */
  close(): void;
}

/** Return the current token. */
export const tokenOf = ({ token }: Pick<SubscribeOptions, "token">) => (typeof token === "function" ? token() : token);

/** Call a callback. If it throws, the error is reported globally, and the connection stays open. */
export function call<T>(callback: ((value: T) => void) | undefined, value: T): void {
  try {
    callback?.(value);
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}

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
  const { maxReconnects = 5, persist, device } = options;
  const base = baseOf(options.url);
  const backoff = new Backoff(maxReconnects);
  const key = `synap:${base}:${room}`;
  let position = new Position(options.after);
  let state: State = { status: "connecting" };
  let transport: Transport | undefined;
  let dialled = 0; // the number of the current attempt: events of earlier ones are ignored
  let openedAt = 0;
  let prefersSse = false;
  let hadSocket = false; // a WebSocket with synap.v1 was open before
  let isFinal = false;
  let isClosed = false;
  let acknowledges = false; // on this connection
  let acknowledged: string | undefined;
  let received: string | undefined; // the cursor of the last notification
  let sentPing = 0;
  let token: string | undefined; // the last one that was sent to the server
  let warnedOf = 0; // the expiry time in the last warning of the server
  let renewedAt = 0; // on this connection
  let isRenewing = false;
  const timers: Partial<Record<"open" | "dial" | "ping" | "pong" | "ack" | "save" | "renew", ReturnType<typeof setTimeout>>> = {};

  const clear = (name: keyof typeof timers) => {
    clearTimeout(timers[name]);
    delete timers[name];
  };
  const schedule = (name: keyof typeof timers, ms: number, then: () => void) => {
    clear(name);
    timers[name] = setTimeout(() => {
      delete timers[name];
      then();
    }, ms);
  };
  const setState = (next: State) => {
    state = next;
    if (!isClosed) call(options.onStateChange, state);
  };

  // ---- the persisted cursor ----

  // A storage may be full or blocked, and may throw or reject: then the cursor is not persisted.
  let storage: CursorStorage | undefined;
  try {
    storage = persist === true ? (globalThis as { localStorage?: CursorStorage }).localStorage : persist || undefined;
  } catch {}
  const save = async () => {
    clear("save");
    try {
      if (position.cursor) await storage?.setItem(key, position.cursor);
    } catch {}
  };
  const saved = async () => {
    const found = options.after ? undefined : await storage?.getItem(key);
    if (isCursor(found)) position = new Position(found);
  };
  const ready = saved().catch(() => undefined);

  // ---- the connection ----

  const disconnect = () => {
    dialled++;
    for (const name of ["open", "ping", "pong", "ack", "renew"] as const) clear(name);
    transport?.close();
    transport = undefined;
    renewedAt = 0;
    isRenewing = false;
  };

  const connectionLost = (failure: Failure) => {
    const upMs = openedAt && Date.now() - openedAt;
    disconnect();
    const generation = dialled;
    const hasUnreportedGap = openedAt > 0 && position.lost() && position.reportsGaps;
    openedAt = 0;
    // If the token had expired before it arrived, the function may return a newer one.
    const hasFunction = typeof options.token === "function";
    const isExpired = hasFunction && /\bexpired\b/.test(failure.reason);
    isFinal = !!failure.isFinal && !(isExpired && [401, 4501].includes(failure.code ?? 0));
    if (hasUnreportedGap) call(options.onGap, room);
    if (generation !== dialled) return; // the callback has closed or reconnected
    const delayMs = isFinal ? undefined : backoff.nextDelay(failure, upMs);
    const reason = failure.reason.replace(/^no credential/, hasFunction ? "$& from token()" : "$&");
    const error = new RealtimeError(reason, failure.code, !isFinal);
    if (delayMs === undefined) return setState({ status: "closed", error });
    // Start the timer first, because the callback may close or reconnect.
    schedule("dial", delayMs, dial);
    setState({ status: "reconnecting", error, attempt: backoff.count, delayMs });
  };

  const acknowledge = () => {
    if (!acknowledges || received === acknowledged) return;
    acknowledged = received;
    transport?.send(JSON.stringify({ action: "ack", cursor: received }));
  };
  const acknowledgeSoon = () => {
    if (!timers.ack) schedule("ack", ACK_EVERY_MS, acknowledge);
  };

  const ping = (patienceMs = PONG_WITHIN_MS) => {
    if (state.status !== "open") return;
    // A stream cannot send a ping, but receives a comment line every 15 s.
    const isStream = transport?.kind === "sse";
    transport?.send("ping");
    sentPing = Date.now();
    schedule("ping", PING_EVERY_MS, ping);
    if (!timers.pong)
      schedule("pong", isStream ? PING_EVERY_MS : patienceMs, () => {
        // In a frozen tab the timer fires late, before the messages that arrived meanwhile are read.
        if (Date.now() - sentPing > 2 * PING_EVERY_MS) return ping();
        connectionLost({ reason: "pong timeout" });
      });
  };

  const handleControl = ({ control, data }: ControlFrame) => {
    if (control === "synap.subscribed") {
      position.replayComplete(data.cursor);
      acknowledgeSoon(); // the last connection may have ended before its acknowledgement was sent
      schedule("save", 0, save);
      if (data.recovered === false && position.reportsGaps) call(options.onGap, room);
    } else if (control === "synap.presence") {
      call(options.onPresence, data as unknown as Presence);
    } else if (control === "synap.token_expiring") {
      renewSoon(Date.parse(String(data.expiresAt)));
    }
  };

  /**
   * Renew the token, once for each warning. A token that is not newer causes no further warning. Otherwise a
   * function that caches its tokens, or whose tokens live shorter than the warning period, would be called in an
   * endless loop.
   *
   * @param ends when the token expires; NaN if the server does not report it.
   */
  const renewSoon = (ends: number) => {
    if (transport?.kind === "sse" || isRenewing || ends <= warnedOf) return; // a stream cannot renew its token
    warnedOf = ends || warnedOf;
    isRenewing = true;
    const [least, most] = TOKEN_REFRESH_MS;
    const pauseMs = Math.max(least, Math.min(most, (ends - Date.now()) / 2 || 0));
    const waitMs = renewedAt && renewedAt + pauseMs - Date.now();
    if (waitMs > 0) schedule("renew", waitMs, renew);
    else renew();
  };
  const renew = () => {
    const generation = dialled;
    renewedAt = Date.now();
    const done = (found?: string) => {
      if (generation !== dialled) return;
      isRenewing = false;
      if (!found || found === token) return;
      token = found;
      transport?.send(JSON.stringify({ action: "authenticate", token }));
    };
    // Without a new token the connection ends when the old one expires, and the next attempt asks again.
    fetchToken().then(done, () => done());
  };

  const onNotification = (notification: Delivered) => {
    position.moveTo(notification.cursor);
    received = position.cursor;
    if (position.isNew(notification)) call(options.onNotification, notification as NotificationMessage);
    if (isClosed) return;
    acknowledgeSoon();
    if (storage && !timers.save) schedule("save", SAVE_EVERY_MS, save);
  };

  const fetchToken = async (): Promise<string | undefined> => {
    const found: unknown = await tokenOf(options);
    if (found === undefined || found === null || found === "") return undefined;
    if (!isToken(found)) throw new Error(`token() returned ${typeof found === "string" ? "an error page?" : typeof found}`);
    return found;
  };

  /** Try the ways to connect in turn, and report the failure of the last one. */
  const connect = (target: Target, ways: ("v1" | "plain" | "sse")[]) => {
    const generation = ++dialled;
    let [way, ...others] = ways;
    const onEnd = (failure: Failure) => {
      if (generation !== dialled) return;
      clear("open");
      // A close code of PROTOCOL.md, or 1011: the server was reached, so another transport would not help.
      if (openedAt || failure.isFinal || /^(4...|1011)$/.test(`${failure.code}`) || !others.length) {
        prefersSse = prefersSse && openedAt > 0;
        return connectionLost(failure);
      }
      transport?.close();
      connect(target, others);
    };
    const callbacks: TransportCallbacks = {
      onEnd,
      onOpen: (speaksV1) => {
        if (generation !== dialled) return;
        clear("open");
        openedAt = Date.now();
        acknowledges = options.acknowledge !== false && speaksV1 && way !== "sse";
        acknowledged = undefined;
        if (way !== "sse") {
          prefersSse = false;
          hadSocket ||= speaksV1;
        }
        position.connected(speaksV1);
        schedule("ping", PING_EVERY_MS, ping);
        setState({ status: "open", transport: way === "sse" ? "sse" : "websocket" });
        if (way === "sse") ping();
      },
      onPong: () => {
        if (generation !== dialled) return;
        clear("pong");
        if (way === "sse") ping();
      },
      onMessage: (message) => {
        if (generation !== dialled) return;
        if ("control" in message) handleControl(message);
        else onNotification(message);
      },
    };
    schedule("open", OPEN_WITHIN_MS, () => {
      // A proxy that drops one handshake without a response drops the next one, too. One that rejects handshakes
      // costs no time, so then WebSockets are still tried first.
      prefersSse = way === "v1";
      others = others.filter((other) => other !== "plain");
      onEnd({ reason: "connection timeout" });
    });
    try {
      transport = way === "sse" ? eventStream(target, callbacks) : webSocket(target, callbacks, way === "plain");
    } catch (error) {
      // The error message may contain the URL with its token. SyntaxError: the URL is invalid.
      const name = (error as Error | undefined)?.name;
      onEnd({ reason: `cannot connect (${name})`, isFinal: name === "SyntaxError" });
    }
  };

  const dial = () => {
    clear("dial");
    disconnect();
    openedAt = 0;
    const generation = dialled;
    schedule("open", OPEN_WITHIN_MS, () => connectionLost({ reason: "token() timed out" }));
    setState({ status: "connecting" });
    void (async () => {
      await ready;
      if (generation !== dialled) return; // closed, or replaced by a newer attempt
      const brought = await fetchToken();
      if (generation !== dialled) return;
      token = brought;
      const presence = options.presence ? "1" : undefined;
      const target = { base, room, token, query: { after: position.after, device, presence } };
      const ways: ("v1" | "plain" | "sse")[] = prefersSse ? ["sse", "v1"] : ["v1", "sse"];
      // After a short outage of the server, do not switch to another transport.
      if (!canStream()) ways.splice(ways.indexOf("sse"), 1);
      else if (hadSocket && !prefersSse && backoff.count < 2) ways.pop();
      // Without a token, also try a server that supports no subprotocol: a browser rejects a handshake whose
      // response lacks the subprotocol that it has offered. With a token, never: the token would go into the URL.
      if (!token && !presence && !hadSocket) ways.splice(ways.indexOf("v1") + 1, 0, "plain");
      connect(target, ways);
    })().catch((error: unknown) => {
      if (generation === dialled) connectionLost({ reason: `no token: ${error instanceof Error ? error.message : String(error)}` });
    });
  };

  // ---- events of the page ----

  /** Reconnect, or ping an open connection, when the network or the tab is back. */
  const wake = () => {
    if (isFinal) return;
    if (state.status === "reconnecting" || state.status === "closed") {
      backoff.count = 0;
      dial();
    } else if (state.status === "open") ping(PONG_WITHIN_MS / 2);
  };
  const onVisible = () => {
    if (document.visibilityState === "visible") wake();
    else void save();
  };
  const onShown = ({ persisted }: { persisted?: boolean }) => {
    // Restored from the back/forward cache: the connection is gone, but `onclose` may not have been called yet.
    if (persisted && state.status === "open") dial();
    else wake();
  };
  const events: [EventTarget | undefined, string, (event: Event) => void][] = [
    [globalThis.window, "online", wake],
    [globalThis.window, "pageshow", onShown as () => void],
    [globalThis.window, "pagehide", save],
    [globalThis.document, "visibilitychange", onVisible],
  ];
  // The window of React Native has no addEventListener.
  for (const [target, name, listener] of events) target?.addEventListener?.(name, listener);

  const subscription: Subscription = {
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
    send: (text) => transport?.send(text),
    reconnect: () => {
      if (isClosed) return;
      isFinal = false;
      backoff.count = 0;
      dial();
    },
    close: () => {
      if (isClosed) return;
      isClosed = true;
      acknowledge();
      void save();
      for (const name of Object.keys(timers) as (keyof typeof timers)[]) clear(name);
      disconnect();
      for (const [target, name, listener] of events) target?.removeEventListener?.(name, listener);
      setState({ status: "closed" });
    },
  };
  // After the caller has received the subscription, because callbacks may use it.
  queueMicrotask(() => {
    if (!isClosed) dial();
  });
  return subscription;
}
