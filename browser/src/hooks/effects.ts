/** Effects that the hooks share. */
import { useEffect, useInsertionEffect, useMemo, useRef, useSyncExternalStore } from "react";
import type { SubscribeOptions } from "../options.js";
import type { Subscription } from "../state.js";
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

/** Keep the latest value for later calls, so that a new callback does not cause a reconnect. */
export function useLatest<Value>(value: Value): { readonly current: Value } {
  const latest = useRef(value);
  // Set it in the commit of the render, because an effect would run later.
  useInsertionEffect(() => {
    latest.current = value;
  });
  return latest;
}

/**
 * Reconnect when a rejected token that is a string is replaced. A token function needs no such handling, because
 * it is called before each connection.
 */
export function useNewToken(token: SubscribeOptions["token"], current: { readonly current: Subscription | null }): void {
  const fixed = typeof token === "string" ? token : undefined;
  useEffect(() => {
    const { status, error } = current.current?.state ?? {};
    if (fixed && status === "closed" && error) current.current?.reconnect();
  }, [fixed, current]);
}

/** Return the value of a store, and render again when it changes. */
export const useValue = <Value>({ subscribe, get }: Store<Value>): Value => useSyncExternalStore(subscribe, get, get);

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
export function useView<Value, Selected>(store: Store<Value>, { throttleMs = 0, select }: ViewOptions<Value, Selected>): Selected {
  const shown = useRef<Selected>(undefined);
  const subscribe = useMemo(() => {
    return (listener: () => void) => {
      let timer: ReturnType<typeof setTimeout> | undefined;
      let next = 0;
      const call = () => {
        timer = undefined;
        next = Date.now() + throttleMs;
        listener();
      };
      const stop = store.subscribe(() => {
        const waitMs = next - Date.now();
        if (!(throttleMs > 0) || waitMs <= 0) call();
        else timer ??= setTimeout(call, waitMs);
      });
      return () => {
        clearTimeout(timer);
        stop();
      };
    };
  }, [store, throttleMs]);
  const get = () => {
    const value = (select ? select(store.value) : store.value) as Selected;
    return isSame(shown.current, value) ? (shown.current as Selected) : (shown.current = value);
  };
  return useSyncExternalStore(subscribe, get, get);
}
