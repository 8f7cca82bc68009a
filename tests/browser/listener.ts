/** A page that listens to one room, and records what it receives for the test. */
import {
  subscribe,
  subscribeShared,
  type NotificationMessage,
  type Presence,
  type State,
  type SubscribeOptions,
  type Subscription,
} from "../../browser/src/index.js";
import { changed } from "./until.js";

declare global {
  var subscription: Subscription;
  var recorded: { notifications: NotificationMessage[]; states: State[]; gaps: number; presences: Presence[] };
  /** The test's; a string that it gives as `token` is one. */
  function bringToken(): Promise<string>;
  function listen(room: string, options: SubscribeOptions & { isShared?: boolean; bringsToken?: boolean }): void;
}

globalThis.recorded = { notifications: [], states: [], gaps: 0, presences: [] };

globalThis.listen = (room, { isShared, bringsToken, ...options }) => {
  const kept =
    <Value>(list: Value[]) =>
    (value: Value) => {
      list.push(value);
      changed();
    };
  globalThis.subscription = (isShared ? subscribeShared : subscribe)(room, {
    ...options,
    token: bringsToken ? () => bringToken() : options.token,
    onNotification: kept(recorded.notifications),
    // An error's message is no member of its JSON.
    onStateChange: (state) => kept(recorded.states)({ ...state, error: state.error && { ...state.error, message: state.error.message } }),
    onPresence: kept(recorded.presences),
    onGap: () => {
      recorded.gaps++;
      changed();
    },
  });
};
