/** `RealtimeProvider`: the server and the token of all hooks below it. */
import { createContext, createElement, useContext, useInsertionEffect, useMemo, useRef, type ReactNode } from "react";
import type { SubscribeOptions } from "../options.js";

/** The server, and the token for it. */
export type ServerOptions = Pick<SubscribeOptions, "url" | "token">;

export interface RealtimeProviderProps extends ServerOptions {
  children?: ReactNode;
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

const Context = createContext<ServerOptions>({});

/**
 * Give all hooks below it their server and their token. Those that name another server do not get the token.
 *
 * ```tsx
 * <RealtimeProvider url="https://rooms.example.com" token={fetchToken}>…</RealtimeProvider>
 * ```
 */
export function RealtimeProvider({ url, token, children }: RealtimeProviderProps) {
  const latest = useLatest(token);
  const fixed = typeof token === "function" || token;
  const value = useMemo<ServerOptions>(
    // The function stays the same, so that all hooks share one connection and one call.
    () => ({ url, token: fixed === true ? () => (latest.current as () => string)() : fixed }),
    [url, fixed],
  );
  return createElement(Context.Provider, { value }, children);
}

/** Return the options, with the server and the token of the provider where they have none. */
export function useServer<Options extends ServerOptions>(options: Options): Options {
  const given = useContext(Context);
  const url = options.url ?? given.url;
  const isOther = url !== given.url;
  const { token = isOther ? undefined : given.token } = options;
  return { ...options, url, token };
}
