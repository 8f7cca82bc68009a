/** What the hooks share: a model of a room, which lives as long as the component shows that room. */
import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { baseOf, check, type SubscribeOptions } from "../options.js";
import type { Subscription } from "../state.js";
import { subscribe } from "../subscription.js";
import { createTimer } from "../timer.js";
import { useLatest, useServer, type ServerOptions } from "./provider.js";
import type { Store } from "./store.js";

/** Which of a hook's values a component uses, and how often. */
export interface ViewOptions<Value, Selected = Value> {
  /** False: no connection, and no request. Default: true. */
  enabled?: boolean | undefined;
  /** Render at most once in this many milliseconds. */
  throttleMs?: number | undefined;
  /** Return only this part of the value. The component renders again when it has changed, compared shallowly. */
  select?: ((value: Value) => Selected) | undefined;
}

/** What a hook keeps while it shows the same room, over all connections. */
export interface Model<Value> {
  store: Store<Value>;
  /** Connect; the function that is returned disconnects. */
  start(): (() => void) | undefined;
}

/** How a model connects. */
export interface Client<Options> {
  /** The options of the last render. */
  latest: { readonly current: Options };
  /** Subscribe with the latest token. */
  open(room: string, options: SubscribeOptions, how?: typeof subscribe): Subscription;
  reconnect(): void;
}

/**
 * Keep a model, which is started while the component is mounted, and return what the component shows of it.
 *
 * @param key a new one, or a new server, is a new model, so that no render shows anything of the old one.
 * @param create returns a new model.
 * @param restart a new one starts the model again.
 * @throws TypeError it names the invalid option.
 */
export function useModel<Options extends ServerOptions, Value, Selected>(
  given: Options & ViewOptions<Value, Selected>,
  key: readonly unknown[],
  create: (client: Client<Options>) => Model<Value>,
  restart: readonly unknown[] = [],
): Selected {
  const options = useServer(given);
  const { url, token, enabled = true } = options;
  check(options);
  baseOf(url);
  const latest = useLatest(options);
  const [model, reconnectIfRefused] = useMemo(() => {
    let current: Subscription | undefined;
    const model = create({
      latest,
      open: (room, more, how = subscribe) =>
        (current = how(room, {
          ...more,
          url,
          get token() {
            return latest.current.token;
          },
        })),
      reconnect: () => current?.reconnect(),
    });
    const reconnectIfRefused = () => {
      if (current?.state.status === "closed" && current.state.error) current.reconnect();
    };
    return [model, reconnectIfRefused];
  }, [url, ...key]);
  useEffect(() => (enabled ? model.start() : undefined), [model, enabled, ...restart]);
  // Reconnect when a rejected token that is a string is replaced. A token function needs no such handling, because
  // it is called before each connection.
  useEffect(reconnectIfRefused, [typeof token === "string" && token]);
  return useView(model.store, options);
}

const isSame = (one: unknown, other: unknown) => {
  if (Object.is(one, other)) return true;
  if (typeof one !== "object" || typeof other !== "object" || !one || !other) return false;
  const entries = Object.entries(one);
  return (
    entries.length === Object.keys(other).length &&
    entries.every(([name, value]) => Object.is(value, (other as Record<string, unknown>)[name]))
  );
};

/** Return a part of the value of a store, and render again when it changes, but not too often. */
function useView<Value, Selected>(store: Store<Value>, { throttleMs = 0, select }: ViewOptions<Value, Selected>): Selected {
  const shown = useRef<unknown>(undefined);
  const subscribe = useMemo(
    () => (listener: () => void) => {
      const timer = createTimer();
      let next = 0;
      const call = () => {
        next = Date.now() + throttleMs;
        listener();
      };
      const stop = store.subscribe(() => {
        const waitMs = next - Date.now();
        if (waitMs > 0) timer.ensure(waitMs, call);
        else call();
      });
      return () => {
        timer.stop();
        stop();
      };
    },
    [store, throttleMs],
  );
  const get = () => {
    const value = select ? select(store.get()) : store.get();
    if (!isSame(shown.current, value)) shown.current = value;
    return shown.current as Selected;
  };
  return useSyncExternalStore(subscribe, get, get);
}
