/** What the hooks share: a model of a room, which lives as long as the component shows that room. */
import * as React from "react";
import { baseOf, check, type SubscribeOptions } from "../options.js";
import type { Delivered } from "../protocol.js";
import type { RealtimeError, State, Status, Subscription } from "../state.js";
import { createTimer } from "../timer.js";

/** The server, and the token for it. */
export type ServerOptions = Pick<SubscribeOptions, "url" | "token">;

/** Which of a hook's values a component uses, and how often. */
export interface ViewOptions<Value, Selected = Value> {
  /** False: no connection, and no request. Default: true. */
  enabled?: boolean | undefined;
  /** Render at most once in this many milliseconds. */
  throttleMs?: number | undefined;
  /** Return only this part of the value. The component renders again when it has changed, compared shallowly. */
  select?: ((value: Value) => Selected) | undefined;
}

/** An `Event` with the cause of the error. */
export interface RealtimeErrorEvent extends Event {
  readonly message: string;
  /** A close code, or the HTTP status of a rejected request. */
  readonly code?: number;
  /** Whether a retry can succeed. */
  readonly retriable: boolean;
}

/** What a model uses of a subscription. */
export type Connection = Pick<Subscription, "resume" | "send" | "reconnect" | "close">;

/** A room, and how a component shows it. Its members are also options of the subscription. */
export interface Model<Value> extends Omit<SubscribeOptions, "onNotification"> {
  /** None: there is nothing to subscribe to. */
  room: string | undefined;
  subscribe(room: string, options: never): Omit<Connection, "send">;
  /** What the component shows at first. */
  value: Value;
  onState(status: Status, error: RealtimeErrorEvent | null): void;
  onNotification(notification: Delivered): unknown;
}

/** A model at work, while the component shows its room: over all connections. */
export interface Client<Options, Value> {
  /** The options of the last render. */
  latest: Options;
  /** What the component shows, unless it selects a part of it. */
  value: Value;
  /** Change some members of the value. */
  set(change: Partial<Value>): void;
  /** What was shown last of the value. */
  shown?: unknown;
  /** Call a function when the value changes. */
  listen(listener: () => void): () => void;
  subscription?: Connection | undefined;
  /** Connect now, also after the last attempt has failed. */
  connect(): void;
  close(): void;
}

const Server = React.createContext<ServerOptions>({});

export interface RealtimeProviderProps extends ServerOptions {
  children?: React.ReactNode;
}

/**
 * Give all hooks below it their server and their token. Those that name another server do not get the token.
 *
 * ```tsx
 * <RealtimeProvider url="https://rooms.example.com" token={fetchToken}>…</RealtimeProvider>
 * ```
 */
export function RealtimeProvider({ url, token, children }: RealtimeProviderProps) {
  const latest = React.useRef(token);
  React.useInsertionEffect(() => {
    latest.current = token;
  });
  const fixed = typeof token === "function" || token;
  const value = React.useMemo<ServerOptions>(
    // The function stays the same, so that all hooks share one connection and one call.
    () => ({ url, token: fixed === true ? () => (latest.current as () => string)() : fixed }),
    [url, fixed],
  );
  return React.createElement(Server.Provider, { value }, children);
}

/**
 * Keep a model, which is started while the component is mounted, and return what the component shows of it.
 *
 * @param key a new one, or a new server, is a new model, so that no render shows anything of the old one.
 * @param create returns a new model.
 * @param restart options with which the model connects again when they change.
 * @throws TypeError it names the invalid option.
 */
export function useModel<Options extends ServerOptions, Value, Selected>(
  given: Options & ViewOptions<Value, Selected>,
  key: readonly unknown[],
  create: (client: Client<Options & ViewOptions<Value, Selected>, Value>) => Model<Value>,
  restart: readonly unknown[] = [],
): Selected {
  const server = React.useContext(Server);
  const url = given.url ?? server.url;
  const { token = url === server.url ? server.token : undefined, enabled, select } = given;
  const options = { ...given, url, token };
  check(options);
  baseOf(url);
  const client = React.useMemo(() => {
    const timer = createTimer();
    let listener: (() => void) | undefined;
    let status: Status | undefined;
    let error: RealtimeErrorEvent | null; // until the next connection is open
    let start: string | undefined; // of the first connection
    let resume: string | undefined; // where the last one has ended

    const report = () => listener?.();
    const setState = (now: Status, cause?: RealtimeError) => {
      status = now;
      error = cause ? errorEvent(cause) : status === "connecting" ? error : null;
      model.onState(status, error);
    };
    const client = {
      latest: options,
      set: (change: Partial<Value>) => {
        client.value = { ...client.value, ...change };
        const { throttleMs } = client.latest;
        if (throttleMs) timer.ensure(throttleMs, report);
        else report();
      },
      listen: (to: () => void) => {
        listener = to;
        return () => (listener = undefined);
      },
      connect: () => {
        const { subscription } = client;
        const { after } = client.latest as SubscribeOptions;
        if (/reconnecting|closed/.test(status!)) subscription?.reconnect();
        if (subscription || !model.room) return;
        if (start !== after) resume = undefined;
        start = after;
        setState("connecting");
        const own = {
          ...client.latest, ...model,
          ...(resume && { after: resume }),
          onStateChange: ({ status, error }: State) => setState(status, error),
          get token() {
            return client.latest.token;
          },
        };
        client.subscription = model.subscribe(model.room, own as never) as Connection;
      },
      close: () => {
        const { subscription } = client;
        resume = subscription?.resume ?? resume;
        subscription?.close();
        client.subscription = undefined;
        setState("closed");
      },
    } as Client<typeof options, Value>;
    const model = create(client);
    client.value = model.value;
    return client;
  }, [url, ...key]);
  // In the commit of the render, because an effect would run later: a new callback does not cause a reconnect.
  React.useInsertionEffect(() => {
    client.latest = options;
  });
  React.useEffect(() => {
    if (enabled !== false) client.connect();
    return client.close;
  }, [client, enabled, enabled !== false && `${restart}`]); // not if the application has connected by itself
  // Reconnect when a rejected token that is a string is replaced. A token function needs no such handling, because
  // it is called before each connection.
  React.useEffect(() => {
    if (client.subscription) client.connect();
  }, [typeof token === "string" && token]);
  const get = () => {
    const value = select ? select(client.value) : client.value;
    if (!isSame(client.shown, value)) client.shown = value;
    return client.shown as Selected;
  };
  return React.useSyncExternalStore(client.listen, get, get);
}

/** Return an `Event` with the cause of an error, also where there is no `Event`. */
const errorEvent = (error: RealtimeError): RealtimeErrorEvent =>
  Object.assign(globalThis.Event ? new Event("error") : ({ type: "error" } as Event), error, { message: error.message });

/** Compare two values shallowly. */
const isSame = (one: any, other: any) =>
  Object.is(one, other) ||
  (Object(one) === one && Object(other) === other && one.length === other.length &&
    Object.keys({ ...one, ...other }).every((name) => Object.is(one[name], other[name])));

/** What the hooks of jobs show of the connection. */
export interface ConnectionState {
  /** `reconnecting`: the connection was lost, and the next attempt is scheduled. `closed`: also when a job is finished. */
  connection: Status;
  connectionError: RealtimeErrorEvent | null;
}

export const DISCONNECTED: ConnectionState = { connection: "closed", connectionError: null };
