/** One subscription for several tabs. */
import { baseOf, check, checkRoom, type SubscribeOptions } from "./options.js";
import type { State, Subscription } from "./state.js";
import { subscribe } from "./subscription.js";

/**
 * Subscribe to a room over one connection for all tabs of this origin that use the same room and options.
 *
 * A tab opens its own connection if the browser lacks `navigator.locks` or `BroadcastChannel`, or if it asks for
 * presence, because the server sends the list of users only when a room is subscribed.
 *
 * When the leader is closed, another tab resumes from its position.
 */
export function subscribeShared(room: string, options: SubscribeOptions = {}): Subscription {
  checkRoom(room);
  check(options);
  baseOf(options.url);
  if (!globalThis.navigator?.locks || typeof BroadcastChannel === "undefined" || options.presence) return subscribe(room, options);
  let state: State = { status: "connecting" };
  let inner: Subscription | undefined;
  const open = (how: typeof subscribe) => void (state.status === "closed" || (inner = how(room, options)));
  // Each tab connects by itself if the module cannot be loaded.
  import("./shared.js").then(({ shareRoom }) => open(shareRoom), () => open(subscribe));
  return {
    room,
    get state() {
      return inner?.state ?? state;
    },
    get cursor() {
      return inner?.cursor;
    },
    get resume() {
      return inner?.resume;
    },
    send: (text) => inner?.send(text),
    reconnect: () => inner?.reconnect(),
    close: () => {
      state = { status: "closed" };
      inner?.close();
    },
  };
}
