/** Effects that both hooks share. */
import { useEffect, useInsertionEffect, useRef, useSyncExternalStore } from "react";
import type { SubscribeOptions } from "../options.js";
import type { Subscription } from "../state.js";
import type { Store } from "./store.js";

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
