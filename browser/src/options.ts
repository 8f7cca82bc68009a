/** The options of `subscribe`, and their validation: the error names the invalid option. */
import type { NotificationMessage } from "./message.js";
import type { Presence } from "./protocol.js";
import type { State } from "./state.js";

/** Storage of the cursor: `localStorage`, or React Native's `AsyncStorage`. */
export interface CursorStorage {
  getItem(key: string): string | null | Promise<string | null>;
  setItem(key: string, value: string): unknown;
}

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

declare const process: { env: Record<string, string | undefined> } | undefined;

const SERVER = /^(https?|wss?):\/\/([^\s/?#@]*@)?(\[[\da-f:.]+\]|[^\s/?#@:[\]\\]+)(:\d{1,5})?(\/[^\s?#\\]*)?$/i;
const ROOM = /^(?!synap_)[a-z][a-z0-9-]{0,31}_([\w.~:@|=+-]{1,200})$/;
/** A template literal turns a missing id into one of these: `user_${undefined}`. */
const NO_ID = /^(undefined|null|NaN)$/;
const ID = "of A-Z a-z 0-9 ._~:@|=+-";

/** A server's address without credentials and query, for messages. */
export const shown = (url: string) => url.replace(/^(\w+:\/\/)[^/?#]*@/, "$1").replace(/[?#].*/s, "");

function refuse(name: string, expected: string, value: unknown): never {
  const got = typeof value === "string" ? JSON.stringify(shown(value.slice(0, 100))) : value && typeof value;
  throw new TypeError(`${name}: expected ${expected}${name === "token" ? "" : `, got ${got}`}`);
}

/** Whether a value can be a token. An HTML error page, which a token endpoint may return, cannot. */
export const isToken = (value: unknown): value is string => typeof value === "string" && /^[^\0-\x1f\x7f<]+$/.test(value);

export const isCursor = (value: unknown): value is string => typeof value === "string" && /^[\w-]{1,64}$/.test(value);

const isFunction = (value: unknown) => typeof value === "function";
const isBoolean = (value: unknown) => typeof value === "boolean";

type Rule = readonly [isRight: (value: never) => unknown, expected: string];
const SWITCH: Rule = [isBoolean, "true or false"];
const NUMBER: Rule = [(value: unknown) => typeof value === "number" && value === value, "a number"];
const CALLBACK: Rule = [(value: unknown) => value === null || isFunction(value), "a function"];
/** How to validate each option that is set. */
const RULES: Record<string, Rule> = {
  token: [
    (value: unknown) => value === null || isFunction(value) || isToken(value),
    "a token, or a function that returns one",
  ],
  after: [(value: unknown) => value === "" || isCursor(value), "a cursor, 'earliest' or 'latest'"],
  maxReconnects: [
    (value: unknown) => value === Infinity || (Number.isInteger(value) && (value as number) >= 0),
    "a whole number, or Infinity",
  ],
  device: [(value: unknown) => typeof value === "string" && /^[\w.~:@|=+-]{1,64}$/.test(value), `1 to 64 ${ID}`],
  persist: [
    (value: { getItem?: unknown; setItem?: unknown } | null) =>
      isBoolean(value) || (isFunction(value?.getItem) && isFunction(value?.setItem)),
    "true, false or a storage",
  ],
  maxMessages: NUMBER,
  acknowledge: SWITCH,
  presence: SWITCH,
  shared: SWITCH,
  autoConnect: SWITCH,
  enabled: SWITCH,
  throttleMs: NUMBER,
  limit: NUMBER,
};

/**
 * Validate the options of `subscribe` or of a hook.
 *
 * @throws TypeError it names the invalid option.
 */
export function check(options: object): void {
  for (const [name, value] of Object.entries(options)) {
    const rule = RULES[name] ?? (/^on[A-Z]/.test(name) ? CALLBACK : undefined);
    if (rule && value !== undefined && !rule[0](value as never)) refuse(name, rule[1], value);
  }
}

/** Return the room of a user or a request. @throws TypeError the id is invalid. */
export function roomOf(kind: "user" | "request", id: unknown): string {
  const room = `${kind}_${id}`;
  if (typeof id !== "string" || NO_ID.test(id) || !ROOM.test(room)) refuse(`${kind}Id`, `1 to 200 ${ID}`, id);
  return room;
}

/** @throws TypeError the room is invalid. */
export function checkRoom(room: unknown): void {
  const [, id = "null"] = (typeof room === "string" && ROOM.exec(room)) || [];
  if (NO_ID.test(id)) refuse("room", "user_{id} or request_{id}", room);
}

/**
 * Return the server's base URL, `http` or `https`, without a trailing slash.
 *
 * @param url default: `NEXT_PUBLIC_REALTIME_URL`, if the bundler inlines it, else this machine.
 * @throws TypeError the URL is invalid.
 */
export function baseOf(url: string | undefined, name = "url"): string {
  let found = url;
  if (found === undefined) {
    name = "NEXT_PUBLIC_REALTIME_URL";
    try {
      // Next.js inlines only this exact expression.
      found = process!.env.NEXT_PUBLIC_REALTIME_URL;
    } catch {
      // A browser has no `process`.
    }
    found ||= "http://127.0.0.1:8787";
  }
  const [all, , , , port = ""] = (typeof found === "string" && SERVER.exec(found)) || [];
  if (!all || +port.slice(1) > 65535) refuse(name, "https://HOST or wss://HOST", found);
  return all.replace(/^(ws|http)s?/i, (scheme) => scheme.toLowerCase().replace("ws", "http")).replace(/\/+$/, "");
}
