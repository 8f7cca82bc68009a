/** Reconnecting when the machine, the network or the tab is back, without waiting for timers. */
import { beforeEach, expect, test, vi } from "vitest";
import { connected, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

let page: EventTarget;
let tab: EventTarget & { visibilityState: string };
beforeEach(() => {
  page = new EventTarget();
  tab = Object.assign(new EventTarget(), { visibilityState: "visible" });
  vi.stubGlobal("window", page);
  vi.stubGlobal("document", tab);
});

const show = (visibilityState: "visible" | "hidden") => {
  tab.visibilityState = visibilityState;
  tab.dispatchEvent(new Event("visibilitychange"));
};
const wakes: [string, () => void][] = [
  ["online", () => page.dispatchEvent(new Event("online"))],
  ["pageshow", () => page.dispatchEvent(new Event("pageshow"))],
  ["a tab that is seen", () => show("visible")],
];
const block = (areBlocked: boolean) => {
  ScriptedSocket.areBlocked = ScriptedStream.areBlocked = areBlocked;
};

test.each(wakes)("%s: reconnects immediately", async (_, wake) => {
  const { socket } = await connected();
  socket.notify("c1").end(1006);
  wake();
  await settle();
  expect(ScriptedSocket.all).toHaveLength(2);
  expect(ScriptedSocket.last.after).toBe("c1");
  await pass(1000); // the timer was cleared
  expect(ScriptedSocket.all).toHaveLength(2);
});

test.each(wakes)("%s: reconnects a closed subscription, and resets the count", async (_, wake) => {
  const { socket, subscription } = await connected();
  block(true);
  socket.end(1006);
  await pass(60_000);
  expect(subscription.state.status).toBe("closed");
  wake();
  await settle();
  expect(subscription.state).toMatchObject({ status: "reconnecting", attempt: 1, delayMs: 1000 });
  block(false);
  await pass(1000);
  ScriptedSocket.last.accept();
  expect(subscription.state.status).toBe("open");
});

test.each(wakes)("%s: does not reconnect after a final error", async (_, wake) => {
  const { socket } = await connected();
  socket.end(4503);
  wake();
  await settle();
  expect(ScriptedSocket.all).toHaveLength(1);
});

test.each(wakes)("%s: never after the end", async (_, wake) => {
  const { subscription } = await connected();
  subscription.close();
  wake();
  await settle();
  expect(ScriptedSocket.all).toHaveLength(1);
});

test.each(wakes)("%s: an open connection must answer a ping within 5 s", async (_, wake) => {
  const { socket, subscription } = await connected();
  wake();
  expect(socket.pings).toBe(1);
  socket.text("pong");
  await pass(5000);
  expect(subscription.state.status).toBe("open");
  wake();
  await pass(5000);
  expect(subscription.state.status).toBe("reconnecting");
});

test("a page restored from the back/forward cache with a dead socket reconnects", async () => {
  const { socket } = await connected();
  socket.notify("c1");
  page.dispatchEvent(new Event("pagehide"));
  socket.readyState = 3;
  page.dispatchEvent(new Event("pageshow"));
  await pass(6000);
  expect(ScriptedSocket.last.after).toBe("c1");
  expect(ScriptedSocket.all).toHaveLength(2);
});

test("a hidden tab does not connect, and loses nothing", async () => {
  const { socket, notifications } = await connected();
  show("hidden");
  await settle();
  expect(socket.pings).toBe(0);
  socket.notify("c1", "c2").end(1006);
  show("hidden");
  await settle();
  expect(ScriptedSocket.all).toHaveLength(1);
  expect(notifications).toEqual(["c1", "c2"]);
});

test("a connecting subscription is not interrupted", async () => {
  const { socket } = await connected();
  socket.end(1006);
  for (const [, wake] of wakes) wake();
  await settle();
  for (const [, wake] of wakes) wake();
  await settle();
  expect(ScriptedSocket.all).toHaveLength(2);
});

test("close() removes every event listener", async () => {
  const listeners = new Set<unknown>();
  for (const target of [page, tab]) {
    const { addEventListener: add, removeEventListener: remove } = target;
    target.addEventListener = (name: string, listener: never) => {
      listeners.add(listener);
      add.call(target, name, listener);
    };
    target.removeEventListener = (name: string, listener: never) => {
      listeners.delete(listener);
      remove.call(target, name, listener);
    };
  }
  const { subscription } = await connected();
  expect(listeners.size).toBeGreaterThan(2);
  subscription.close();
  expect(listeners.size).toBe(0);
});

test("a window without addEventListener, as in React Native, is supported", async () => {
  vi.stubGlobal("window", {});
  vi.stubGlobal("document", undefined);
  const { subscription } = await connected();
  expect(subscription.state.status).toBe("open");
  subscription.close();
});
