/** Callbacks that throw, close or reconnect do not break the connection. */
import { expect, test, vi } from "vitest";
import type { Subscription } from "../src/state.js";
import { connected, recordSubscription, pass, ScriptedSocket, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

const callbacks = ["onNotification", "onStateChange", "onGap", "onPresence"] as const;
type Callback = (typeof callbacks)[number];

/** Trigger all callbacks on one connection. The named one calls `act`. */
async function triggerAll(name: Callback, act: (subscription: Subscription) => void) {
  const listener: ReturnType<typeof recordSubscription> = recordSubscription({
    after: "c0",
    persist: { getItem: () => null, setItem: () => {} },
    [name]: () => act(listener.subscription),
  });
  await settle();
  const socket = ScriptedSocket.all[0];
  if (!socket || socket.isClosed) return listener;
  socket.accept().control("presence", { event: "state", users: [] });
  socket.notify("c1").subscribed("c1", false).notify("c2").end(1006);
  await settle();
  return listener;
}

test.each(callbacks)("an error thrown by %s is reported, and no event is lost", async (name) => {
  const reports: unknown[] = [];
  const { setTimeout: later } = globalThis;
  vi.stubGlobal("setTimeout", (then: () => void, ms?: number) =>
    later(() => {
      try {
        then();
      } catch (error) {
        reports.push(error);
      }
    }, ms),
  );
  let thrown = 0;
  const { notifications, statuses, gaps, presence } = await triggerAll(name, () => {
    throw new Error(`${++thrown} of the application`);
  });
  expect(notifications).toEqual(["c1", "c2"]);
  expect(statuses()).toEqual(["connecting", "open", "reconnecting"]);
  expect([gaps.length, presence.length]).toEqual([1, 1]);
  await pass(1);
  expect(thrown).toBeGreaterThan(0);
  expect(reports).toHaveLength(thrown);
});

test.each(callbacks)("%s may close the subscription, and no callback follows", async (name) => {
  let count = 0;
  const { subscription, ...recorded } = await triggerAll(name, (subscription) => {
    count++;
    subscription.close();
  });
  const before = JSON.stringify(recorded);
  expect(vi.getTimerCount()).toBe(0);
  await pass(600_000);
  expect(count).toBe(1);
  expect(JSON.stringify(recorded)).toBe(before);
  expect(subscription.state.status).toBe("closed");
  expect(ScriptedSocket.all).toHaveLength(1 - Number(name === "onStateChange"));
});

test.each(callbacks)("%s may reconnect, which leaves one connection", async (name) => {
  let count = 0;
  await triggerAll(name, (subscription) => {
    if (++count === 1) subscription.reconnect();
  });
  await pass(1000); // the delay, if its connection was closed
  const { length } = ScriptedSocket.all;
  for (const socket of ScriptedSocket.all.slice(0, -1)) expect(socket.isClosed).toBe(true);
  expect(ScriptedSocket.last.isClosed).toBe(false);
  ScriptedSocket.last.accept();
  await pass(20_000);
  expect(ScriptedSocket.all).toHaveLength(length);
});

/** Interrupt three replays, so that the loss of the connection reports a gap. */
async function cutReplays(act: (subscription: Subscription) => void) {
  const listener: ReturnType<typeof recordSubscription> = recordSubscription({ after: "c0", onGap: () => act(listener.subscription) });
  for (let cut = 1; cut <= 3; cut++) {
    await pass(4000);
    ScriptedSocket.last.accept().notify(`c${cut}`).end(1006);
  }
  await settle();
  expect(listener.gaps).toHaveLength(1);
  return listener;
}

test("closing in onGap prevents the reconnect", async () => {
  const { subscription, statuses } = await cutReplays((subscription) => subscription.close());
  const dialled = ScriptedSocket.all.length;
  await pass(60_000);
  expect(ScriptedSocket.all).toHaveLength(dialled);
  expect(subscription.state.status).toBe("closed");
  expect(statuses().at(-1)).toBe("open");
});

test("reconnecting in onGap opens one connection", async () => {
  const { subscription } = await cutReplays((subscription) => subscription.reconnect());
  ScriptedSocket.last.accept();
  const dialled = ScriptedSocket.all.length;
  await pass(20_000);
  expect(ScriptedSocket.all).toHaveLength(dialled);
  expect(subscription.state.status).toBe("open");
});

test("reconnect closes an open connection first", async () => {
  const { socket, subscription } = await connected();
  socket.notify("c1");
  subscription.reconnect();
  expect(socket.isClosed).toBe(true);
  await settle();
  expect(ScriptedSocket.last.after).toBe("c1");
});

test("closing twice, or reconnecting after close, does nothing", async () => {
  const { subscription } = await connected();
  subscription.close();
  subscription.close();
  subscription.reconnect();
  await pass(60_000);
  expect(ScriptedSocket.all).toHaveLength(1);
});
