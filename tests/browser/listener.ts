/** A page that listens to one room, and keeps what it was told for the test that looks at it. */
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
  var told: { notifications: NotificationMessage[]; states: State[]; gaps: number; presences: Presence[] };
  /** The test's; a string that it gives as `token` is one. */
  function bringToken(): Promise<string>;
  function listen(room: string, options: SubscribeOptions & { isShared?: boolean; bringsToken?: boolean }): void;
}

globalThis.told = { notifications: [], states: [], gaps: 0, presences: [] };

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
    onNotification: kept(told.notifications),
    // An error's message is no member of its JSON.
    onStateChange: (state) => kept(told.states)({ ...state, error: state.error && { ...state.error, message: state.error.message } }),
    onPresence: kept(told.presences),
    onGap: () => {
      told.gaps++;
      changed();
    },
  });
};
