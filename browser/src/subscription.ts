/** A subscription to one room: connected, resumed, renewed, until it is closed. */
import { Backoff } from "./backoff.js";
import { baseOf, check, checkRoom, isCursor, isToken } from "./options.js";
import { Position } from "./position.js";
import type { ControlFrame, Delivered, Failure } from "./protocol.js";
import type { NotificationMessage } from "./message.js";
import { canStream, eventStream, webSocket, type TransportCallbacks, type Target, type Transport } from "./transports.js";

const PING_EVERY_MS = 30_000;
const PONG_WITHIN_MS = 10_000;
/** What lets no WebSocket open may let nothing come back either. */
const OPEN_WITHIN_MS = 10_000;
const ACK_EVERY_MS = 500;
const SAVE_EVERY_MS = 1_000;
/** On one connection a token is renewed not more often, and not more often than twice in its life. */
const TOKEN_REFRESH_MS = [1_000, 10_000] as const;

/** `reconnecting`: there will be another attempt; `closed`: there will be none. */
export type Status = "connecting" | "open" | "reconnecting" | "closed";

export interface State {
  status: Status;
  /** How it is connected. */
  transport?: "websocket" | "sse";
  /** Why it is not. */
  error?: RealtimeError;
  /** Which attempt in a row comes next, and in how many milliseconds. */
  attempt?: number;
  delayMs?: number;
}

export class RealtimeError extends Error {
  override readonly name = "RealtimeError";
  constructor(
    message: string,
    /** A close code (PROTOCOL.md, "Close codes") or the HTTP status of a refused request. */
    readonly code?: number,
    /** Whether another attempt may succeed. */
    readonly retriable = true,
  ) {
    super(message);
  }
}

/** Where a cursor is kept: `localStorage`, or React Native's `AsyncStorage`. */
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
  /** The room server, `https://…` or `wss://…`. Default: `NEXT_PUBLIC_REALTIME_URL`, else this machine. */
  url?: string | undefined;
  /** A token, or what brings one: it is called at every dial, and when the token is about to end. */
  token?: string | null | (() => string | null | undefined | Promise<string | null | undefined>) | undefined;
  /** Where to start: a cursor, `earliest`, `latest`. Default: PROTOCOL.md, "Subscribing". */
  after?: string | undefined;
  /** Attempts in a row to come back; 5. `Infinity` never gives up. */
  maxReconnects?: number | undefined;
  /** Which of the user's devices this is: each has its own position in the room. */
  device?: string | undefined;
  /** Tell the server what was received, so that it waits for the user no more; true. */
  acknowledge?: boolean | undefined;
  /** Hear who comes and goes, by `onPresence`. */
  presence?: boolean | undefined;
  /** Keep the cursor over reloads: true is `localStorage`. */
  persist?: boolean | CursorStorage | undefined;
  onNotification?: ((notification: NotificationMessage) => void) | undefined;
  onStateChange?: ((state: State) => void) | undefined;
  /** Something was missed that the server no longer has: read it from where it is kept. */
  onGap?: ((room: string) => void) | undefined;
  onPresence?: ((presence: Presence) => void) | undefined;
}

export interface Subscription {
  readonly room: string;
  readonly state: State;
  /** The position after the last notification. */
  readonly cursor: string | undefined;
  /** `after` for a subscription that follows this one, and misses nothing; undefined before anything was heard. */
  readonly resume: string | undefined;
  /** Say something to the server; over Server-Sent Events nothing can be said. */
  send(text: string): void;
  /** Dial now, also after it was given up. */
  reconnect(): void;
  /** The end: nothing is called any more. */
  close(): void;
}

/** A token as it is now. */
export const tokenOf = ({ token }: Pick<SubscribeOptions, "token">) => (typeof token === "function" ? token() : token);

/** What a callback throws is the application's: it is reported, and the connection goes on. */
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
 * Listen to a room.
 *
 * ```ts
 * const subscription = subscribe("user_42", { token, onNotification: ({ type, data }) => … });
 * ```
 *
 * @throws TypeError names the argument or the option that is wrong.
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
  let wire: Transport | undefined;
  let dialled = 0; // what belongs to another dial says nothing any more
  let openedAt = 0;
  let prefersSse = false;
  let hadSocket = false; // a WebSocket of a server that speaks the contract
  let isFinal = false;
  let isClosed = false;
  let acknowledges = false; // on this connection
  let acknowledged: string | undefined;
  let received: string | undefined; // the cursor of the last notification
  let sentPing = 0;
  let token: string | undefined; // the one that the server has
  let warnedOf = 0; // the end of the last token that the server has warned of
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

  // ---- what is kept over reloads ----

  // A storage may be full or forbidden, and may say so at once or later: then it is not kept.
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

  // ---- a connection ----

  const disconnect = () => {
    dialled++;
    for (const name of ["open", "ping", "pong", "ack", "renew"] as const) clear(name);
    wire?.close();
    wire = undefined;
    renewedAt = 0;
    isRenewing = false;
  };

  const lost = (failure: Failure) => {
    const upMs = openedAt && Date.now() - openedAt;
    disconnect();
    const generation = dialled;
    const isUntold = openedAt > 0 && position.lost() && position.reportsGaps;
    openedAt = 0;
    // A function may bring another token than one that has expired before it arrived.
    const hasFunction = typeof options.token === "function";
    const isExpired = hasFunction && /\bexpired\b/.test(failure.reason);
    isFinal = !!failure.isFinal && !(isExpired && [401, 4501].includes(failure.code ?? 0));
    if (isUntold) call(options.onGap, room);
    if (generation !== dialled) return; // who was told has closed or reconnected
    const delayMs = isFinal ? undefined : backoff.nextDelay(failure, upMs);
    const reason = failure.reason.replace(/^no credential/, hasFunction ? "$& from token()" : "$&");
    const error = new RealtimeError(reason, failure.code, !isFinal);
    if (delayMs === undefined) return setState({ status: "closed", error });
    // First the timer: who is told may close or reconnect.
    schedule("dial", delayMs, dial);
    setState({ status: "reconnecting", error, attempt: backoff.count, delayMs });
  };

  const acknowledge = () => {
    if (!acknowledges || received === acknowledged) return;
    acknowledged = received;
    wire?.send(JSON.stringify({ action: "ack", cursor: received }));
  };
  const acknowledgeSoon = () => {
    if (!timers.ack) schedule("ack", ACK_EVERY_MS, acknowledge);
  };

  const ping = (patienceMs = PONG_WITHIN_MS) => {
    if (state.status !== "open") return;
    // Something comes every 15 s over a stream, and nothing can be asked.
    const isStream = wire?.kind === "sse";
    wire?.send("ping");
    sentPing = Date.now();
    schedule("ping", PING_EVERY_MS, ping);
    if (!timers.pong)
      schedule("pong", isStream ? PING_EVERY_MS : patienceMs, () => {
        // A frozen tab's timer comes late, and before what has arrived meanwhile is read.
        if (Date.now() - sentPing > 2 * PING_EVERY_MS) return ping();
        lost({ reason: "the server does not answer any more" });
      });
  };

  const handleControl = ({ control, data }: ControlFrame) => {
    if (control === "synap.subscribed") {
      position.replayComplete(data.cursor);
      acknowledgeSoon(); // the last connection may have ended before it could be said
      schedule("save", 0, save);
      if (data.recovered === false && position.reportsGaps) call(options.onGap, room);
    } else if (control === "synap.presence") {
      call(options.onPresence, data as unknown as Presence);
    } else if (control === "synap.token_expiring") {
      renewSoon(Date.parse(String(data.expiresAt)));
    }
  };

  /**
   * Bring a new token, once for each warning. A token that is not newer brings no other warning: else a function
   * that keeps its tokens, or whose tokens live for less than the warning comes before their end, is asked
   * without end.
   *
   * @param ends when the token does; NaN where the server does not say.
   */
  const renewSoon = (ends: number) => {
    if (wire?.kind === "sse" || isRenewing || ends <= warnedOf) return; // a stream takes no token
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
      wire?.send(JSON.stringify({ action: "authenticate", token }));
    };
    // Without one the connection ends with its token, and the next dial asks again.
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
    if (!isToken(found)) throw new Error(`token() brought ${typeof found === "string" ? "an error page?" : typeof found}`);
    return found;
  };

  /** One way to connect after the other; the last one's failure counts. */
  const connect = (target: Target, ways: ("v1" | "plain" | "sse")[]) => {
    const generation = ++dialled;
    let [way, ...others] = ways;
    const onEnd = (failure: Failure) => {
      if (generation !== dialled) return;
      clear("open");
      // A code of the contract, or 1011: it was reached, and has said what it has to say.
      if (openedAt || failure.isFinal || /^(4...|1011)$/.test(`${failure.code}`) || !others.length) {
        prefersSse = prefersSse && openedAt > 0;
        return lost(failure);
      }
      wire?.close();
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
      // What swallows one WebSocket swallows the next; where they are refused, to try costs nothing.
      prefersSse = way === "v1";
      others = others.filter((other) => other !== "plain");
      onEnd({ reason: "the server did not answer in time" });
    });
    try {
      wire = way === "sse" ? eventStream(target, callbacks) : webSocket(target, callbacks, way === "plain");
    } catch (error) {
      // Its message may hold the address, and the token in it. A SyntaxError: it is no address at all.
      const name = (error as Error | undefined)?.name;
      onEnd({ reason: `it cannot be dialled (${name})`, isFinal: name === "SyntaxError" });
    }
  };

  const dial = () => {
    clear("dial");
    disconnect();
    openedAt = 0;
    const generation = dialled;
    schedule("open", OPEN_WITHIN_MS, () => lost({ reason: "no token came in time" }));
    setState({ status: "connecting" });
    void (async () => {
      await ready;
      if (generation !== dialled) return; // it was closed meanwhile, or is dialled anew
      const brought = await fetchToken();
      if (generation !== dialled) return;
      token = brought;
      const presence = options.presence ? "1" : undefined;
      const target = { base, room, token, query: { after: position.after, device, presence } };
      const ways: ("v1" | "plain" | "sse")[] = prefersSse ? ["sse", "v1"] : ["v1", "sse"];
      // A server that was away for a moment brings nobody to another transport.
      if (!canStream()) ways.splice(ways.indexOf("sse"), 1);
      else if (hadSocket && !prefersSse && backoff.count < 2) ways.pop();
      // Who has a token speaks to a server of ours. A report's server knows no subprotocol, and a browser
      // refuses one that answers without it.
      if (!token && !presence && !hadSocket) ways.splice(ways.indexOf("v1") + 1, 0, "plain");
      connect(target, ways);
    })().catch((error: unknown) => {
      if (generation === dialled) lost({ reason: `no token: ${error instanceof Error ? error.message : String(error)}` });
    });
  };

  // ---- what the machine tells ----

  /** The network or the tab is back: what was given up begins anew, and what seems open is tried. */
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
    // Out of the back/forward cache: no connection outlives that, and it may not have been told yet.
    if (persisted && state.status === "open") dial();
    else wake();
  };
  const events: [EventTarget | undefined, string, (event: Event) => void][] = [
    [globalThis.window, "online", wake],
    [globalThis.window, "pageshow", onShown as () => void],
    [globalThis.window, "pagehide", save],
    [globalThis.document, "visibilitychange", onVisible],
  ];
  // React Native has a window that hears nothing.
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
    send: (text) => wire?.send(text),
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
  // Not before the caller has it: what is called back may use it.
  queueMicrotask(() => {
    if (!isClosed) dial();
  });
  return subscription;
}
