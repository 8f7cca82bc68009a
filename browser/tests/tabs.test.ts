/** One connection for several tabs. The locks and the channels are real. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { NotificationMessage } from "../src/message.js";
import type { SubscribeOptions } from "../src/options.js";
import type { State, Subscription } from "../src/state.js";
import { subscribeShared } from "../src/tabs.js";
import { Room, script, settle, Socket, until } from "./scripted.js";

const url = "http://rooms.test";
let tabs: Tab[];

class Tab {
  readonly received: (string | undefined)[] = [];
  readonly states: State[] = [];
  readonly gaps: string[] = [];
  readonly subscription: Subscription;

  constructor(room = "user_1", options: SubscribeOptions = {}) {
    tabs.push(this);
    this.subscription = subscribeShared(room, {
      url,
      onNotification: ({ id }) => this.received.push(id),
      onStateChange: (state) => this.states.push(state),
      onGap: (gap) => this.gaps.push(gap),
      ...options,
    });
  }

  get status() {
    return this.subscription.state.status;
  }

  close() {
    this.subscription.close();
  }
}

/** Open a tab, and wait until it is connected, itself or through the leader. */
async function open(room?: string, options?: SubscribeOptions): Promise<Tab> {
  const tab = new Tab(room, options);
  await until(() => tab.status === "open");
  return tab;
}

beforeEach(() => {
  tabs = [];
  script();
});

afterEach(async () => {
  for (const tab of tabs) tab.close();
  await settle();
  vi.useRealTimers();
  vi.unstubAllGlobals();
  const { held, pending } = await navigator.locks.query();
  expect([held, pending]).toEqual([[], []]);
});

test("the first tab connects, and the others receive each notification through it once", async () => {
  const room = new Room();
  const several = [await open(), await open(), await open()];
  for (let n = 0; n < 5; n++) room.publish();
  await until(() => several.every(({ received }) => received.length === 5));
  await settle();
  for (const { received } of several) expect(received).toEqual(["n1", "n2", "n3", "n4", "n5"]);
  expect(Socket.all).toHaveLength(1);
});

test("rooms, devices and servers have separate connections", async () => {
  new Room();
  await open("user_1");
  await open("user_2");
  await open("user_1", { device: "phone" });
  await open("user_1", { url: "http://other.test" });
  expect(Socket.live).toHaveLength(4);
});

test("when the leader closes, another tab resumes without loss or duplicates", async () => {
  const room = new Room();
  const [first, second, third] = [await open(), await open(), await open()];
  room.publish();
  await until(() => [first, second, third].every(({ received }) => received.length === 1));
  first.close();
  room.publish(); // while no tab is connected
  await until(() => [second, third].every(({ received }) => received.length === 2));
  room.publish();
  await until(() => [second, third].every(({ received }) => received.length === 3));
  await settle();
  expect(first.received).toEqual(["n1"]);
  for (const { received } of [second, third]) expect(received).toEqual(["n1", "n2", "n3"]);
  expect(Socket.all.map((socket) => socket.asked("after"))).toEqual([null, "c-1"]);
  expect(Socket.live).toHaveLength(1);
});

test("a tab without notifications resumes from the leader's position", async () => {
  const room = new Room();
  room.publish();
  const first = await open("user_1", { after: "latest" });
  const second = await open("user_1", { after: "latest" });
  first.close();
  room.publish(); // while no tab is connected
  await until(() => second.received.length === 1);
  expect([second.received, Socket.last.asked("after")]).toEqual([["n2"], "c-1"]);
});

test("a hundred notifications while tabs are opened and closed", async () => {
  const room = new Room();
  const always = await open();
  let passing = await open();
  for (let n = 0; n < 100; n++) {
    room.publish();
    if (n % 20 === 10) {
      passing.close();
      passing = new Tab();
    }
    if (n % 7 === 0) await settle(1);
  }
  await until(() => always.received.length === 100);
  await settle();
  expect(new Set(always.received).size).toBe(100);
});

test("each tab leads in turn, and the last one has received everything", async () => {
  const room = new Room();
  const several = [await open(), await open(), await open(), await open()];
  const last = several.at(-1) as Tab;
  for (const tab of several.slice(0, -1)) {
    room.publish();
    tab.close();
    room.publish();
    await until(() => last.received.length === room.log.length);
  }
  expect(last.received).toEqual(["n1", "n2", "n3", "n4", "n5", "n6"]);
  expect(Socket.live).toHaveLength(1);
});

test("a later tab receives all of a request's room", async () => {
  const room = new Room();
  room.publish();
  const first = await open("request_7");
  room.publish();
  await until(() => first.received.length === 2);
  const late = await open("request_7");
  expect(late.received).toEqual(["n1", "n2"]);
  room.publish();
  await until(() => late.received.length === 3);
  expect(Socket.all).toHaveLength(1);
});

test("a later tab receives only new notifications of a user's room", async () => {
  const room = new Room();
  room.publish();
  const first = await open();
  expect(first.received).toEqual(["n1"]);
  const late = await open();
  room.publish();
  await until(() => late.received.length === 1);
  expect(late.received).toEqual(["n2"]);
});

test("a tab that needs more than the leader has kept opens its own connection", async () => {
  const room = new Room();
  const first = await open("request_7");
  for (let n = 0; n < 501; n++) room.publish(); // one more than MAX_BUFFERED
  await until(() => first.received.length === 501);
  const late = await open("request_7");
  await until(() => late.received.length === 501);
  expect(Socket.live).toHaveLength(2);
  room.publish();
  await until(() => late.received.length === 502);
  await settle();
  expect(late.received).toHaveLength(502);
});

test("the leader's notifications since its start are not the whole room", async () => {
  const room = new Room(2);
  for (let n = 0; n < 3; n++) room.publish();
  const first = await open(); // from the acknowledged cursor
  expect(first.received).toEqual(["n3"]);
  const late = await open("user_1", { after: "earliest" });
  await until(() => late.received.length === 3);
  expect(late.received).toEqual(["n1", "n2", "n3"]);
});

test("a tab with a cursor receives what follows it", async () => {
  const room = new Room();
  const first = await open();
  for (let n = 0; n < 4; n++) room.publish();
  await until(() => first.received.length === 4);
  const late = await open("user_1", { after: "c-2" });
  expect([late.received, Socket.all.length]).toEqual([["n3", "n4"], 1]);
});

test("a tab with a cursor unknown to the leader opens its own connection", async () => {
  const room = new Room();
  for (let n = 0; n < 3; n++) room.publish();
  await open("user_1", { after: "c-2" });
  const late = await open("user_1", { after: "c-1" });
  await until(() => late.received.length === 2);
  expect([late.received, Socket.live.length]).toEqual([["n2", "n3"], 2]);
});

test("without ids, a notification during the request to the leader is delivered once", async () => {
  const room = new Room();
  const types: string[] = [];
  await open("request_7");
  room.publish({ id: null, type: "a.one" });
  const late = new Tab("request_7", { onNotification: ({ type }) => types.push(type) });
  room.publish({ id: null, type: "a.two" });
  await until(() => late.status === "open");
  await settle();
  expect(types.filter((type) => type === "a.two")).toHaveLength(1);
});

/** Hold the lock of the tabs, as a frozen tab does, until the returned function is called. */
async function holdLock(): Promise<() => void> {
  const probe = await open();
  const [lock] = (await navigator.locks.query()).held ?? [];
  probe.close();
  let release = () => {};
  const isHeld = new Promise<void>((resolve) => {
    void navigator.locks.request(lock?.name as string, () => {
      resolve();
      return new Promise<void>((end) => void (release = end));
    });
  });
  await isHeld;
  return release;
}

test("a leader that does not answer is given up after 2 s", async () => {
  const room = new Room();
  const release = await holdLock();
  const before = Socket.all.length;
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const tab = new Tab();
  await settle();
  vi.advanceTimersByTime(1_999);
  await settle();
  expect(Socket.all).toHaveLength(before);
  vi.advanceTimersByTime(1);
  await until(() => tab.status === "open");
  // When the other tab closes, it becomes the leader, and keeps its connection.
  release();
  await settle();
  const late = await open();
  room.publish();
  await until(() => late.received.length === 1);
  expect(Socket.all).toHaveLength(before + 1);
});

test("when a tab with its own connection becomes the leader, the others receive what they have missed", async () => {
  const room = new Room();
  const release = await holdLock();
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const alone = new Tab();
  await settle();
  vi.advanceTimersByTime(2_000);
  await until(() => alone.status === "open");
  // A leader has answered this tab, but not the other, and then stops sending.
  const frozen = new BroadcastChannel(((await navigator.locks.query()).held ?? [])[0]?.name as string);
  let asked = "";
  frozen.onmessage = ({ data }: MessageEvent<{ hello?: string }>) => void (asked = data.hello ?? asked);
  const other = new Tab();
  await until(() => asked !== "");
  frozen.postMessage({ to: asked, state: { status: "open" }, buffered: [], isAll: false, cursor: "c-0" });
  await until(() => other.status === "open");
  frozen.close();
  for (let n = 0; n < 3; n++) room.publish();
  await until(() => alone.received.length === 3);
  expect(other.received).toEqual([]);
  release();
  await until(() => other.received.length === 3);
  room.publish();
  await until(() => other.received.length === 4);
  expect([alone.received, other.received]).toEqual([["n1", "n2", "n3", "n4"], ["n1", "n2", "n3", "n4"]]);
});

test("a tab that closes while it becomes the leader releases the lock", async () => {
  new Room();
  const first = await open();
  const { locks } = navigator;
  const given = new Promise<void>((resolve) => {
    const request = (name: string, options: LockOptions, callback: LockGrantedCallback<unknown>) =>
      locks.request(name, options, (lock) => {
        if (lock) second.close(); // granted, but not yet delivered
        const end = callback(lock);
        if (lock) resolve();
        return end;
      });
    vi.stubGlobal("navigator", { locks: { request } });
  });
  const second = await open();
  vi.unstubAllGlobals();
  script();
  first.close();
  await given;
  await settle();
  const { held, pending } = await locks.query();
  expect([held, pending]).toEqual([[], []]);
});

test("what a leader sends before it closes without an answer is not lost", async () => {
  const room = new Room();
  const release = await holdLock();
  const channelName = ((await navigator.locks.query()).held ?? [])[0]?.name as string;
  const tab = new Tab();
  await settle();
  const frozen = new BroadcastChannel(channelName);
  room.publish();
  // It forwards and acknowledges a notification, then closes.
  frozen.postMessage({ notification: { id: "n1", type: "a.b", data: {}, cursor: "c-1" } });
  await settle();
  frozen.close();
  release();
  await until(() => tab.status === "open");
  room.publish();
  await until(() => tab.received.length === 2);
  expect([tab.received, Socket.last.asked("after")]).toEqual([["n1", "n2"], "c-1"]);
});

test("states and errors are forwarded to all tabs", async () => {
  new Room();
  const [first, second] = [await open(), await open()];
  Socket.last.end(4503, "not this room");
  await until(() => second.status === "closed");
  expect(second.subscription.state.error).toMatchObject({ message: "not this room", code: 4503, retriable: false });
  expect(first.subscription.state.error).toMatchObject({ code: 4503 });
});

test("a later tab receives the error of the connection", async () => {
  new Room();
  await open();
  Socket.last.end(4503, "not this room");
  const late = new Tab();
  await until(() => late.status === "closed");
  expect(late.subscription.state.error).toMatchObject({ message: "not this room", code: 4503, retriable: false });
});

test("a gap is reported in each tab", async () => {
  Socket.onDial = undefined;
  const first = new Tab();
  await until(() => Socket.all.length === 1);
  const socket = Socket.last.accept();
  socket.subscribed();
  const second = await open();
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  socket.end();
  vi.advanceTimersByTime(1_250);
  await until(() => Socket.all.length === 2);
  Socket.last.accept().subscribed("d-9", false);
  await until(() => second.gaps.length === 1);
  expect(first.gaps).toEqual(["user_1"]);
});

test("send() of any tab uses the one connection", async () => {
  new Room();
  const [first, second] = [await open(), await open()];
  first.subscription.send('"one"');
  second.subscription.send('"two"');
  await until(() => Socket.last.said.length === 2);
  expect(Socket.last.said).toEqual(["one", "two"]);
});

test("any tab can reconnect a closed connection", async () => {
  new Room();
  const [first, second] = [await open("user_1", { maxReconnects: 0 }), await open("user_1", { maxReconnects: 0 })];
  Socket.last.end();
  await until(() => second.status === "closed");
  second.subscription.reconnect();
  await until(() => second.status === "open" && first.status === "open");
  expect(Socket.all).toHaveLength(2);
});

test("the cursor is known in each tab", async () => {
  const room = new Room();
  const [first, second] = [await open(), await open()];
  expect([first.subscription.cursor, second.subscription.cursor]).toEqual(["c-0", "c-0"]);
  room.publish();
  await until(() => second.received.length === 1);
  expect([first.subscription.cursor, second.subscription.cursor]).toEqual(["c-1", "c-1"]);
});

test("an error thrown by a callback is reported, and loses nothing in any tab", async () => {
  const room = new Room();
  room.publish();
  const first = await open("request_7");
  const received: (string | undefined)[] = [];
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const onNotification = ({ id }: NotificationMessage) => {
    received.push(id);
    throw new Error("of the application");
  };
  const second = new Tab("request_7", { onNotification });
  await until(() => second.status === "open");
  room.publish();
  await until(() => received.length === 2 && first.received.length === 2);
  expect(received).toEqual(["n1", "n2"]);
  expect(() => vi.advanceTimersByTime(0)).toThrow("of the application");
});

test("a tab that closes in a callback receives nothing more", async () => {
  const room = new Room();
  for (let n = 0; n < 3; n++) room.publish();
  await open("request_7");
  const received: (string | undefined)[] = [];
  const late = new Tab("request_7", {
    onNotification: ({ id }) => {
      received.push(id);
      late.close();
    },
  });
  await until(() => late.status === "closed");
  await settle();
  expect(received).toEqual(["n1"]);
});

test("a tab that closes in a callback opens no connection in place of a leader that does not answer", async () => {
  new Room();
  const release = await holdLock();
  const before = Socket.all.length;
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const received: (string | undefined)[] = [];
  const tab = new Tab("user_1", {
    onNotification: ({ id }) => {
      received.push(id);
      tab.close();
    },
  });
  await settle();
  const leader = new BroadcastChannel(`synap:${url}:user_1:`);
  leader.postMessage({ notification: { type: "a.b", data: {}, id: "n1", cursor: "c1" } });
  await settle();
  vi.advanceTimersByTime(2_000);
  await settle();
  leader.close();
  release();
  expect([received, tab.status, Socket.all.length]).toEqual([["n1"], "closed", before]);
});

test("after close() no callback is called, and nothing is sent", async () => {
  const room = new Room();
  const [first, second] = [await open(), await open()];
  for (const tab of [second, first]) {
    const before = tab.states.length;
    tab.close();
    tab.close();
    tab.subscription.send('"late"');
    tab.subscription.reconnect();
    expect([tab.status, tab.states.length]).toEqual(["closed", before]);
  }
  room.publish();
  await settle();
  expect([first.received, second.received, Socket.live.length]).toEqual([[], [], 0]);
});

test("a tab that is closed before it has the lock never connects", async () => {
  new Room();
  new Tab().close();
  await settle();
  expect(Socket.all).toHaveLength(0);
});

test("closing and reopening immediately, as StrictMode does, opens one connection without a delay", async () => {
  new Room();
  new Tab().close();
  await open();
  expect(Socket.all).toHaveLength(1);
});

test("a tab with presence has its own connection", async () => {
  new Room();
  await open("user_1", { presence: true });
  await open("user_1", { presence: true });
  expect(Socket.live).toHaveLength(2);
});

test.each(["locks", "BroadcastChannel"])("without %s each tab has its own connection", async (missing) => {
  new Room();
  if (missing === "locks") vi.stubGlobal("navigator", {});
  else vi.stubGlobal("BroadcastChannel", undefined);
  const several = [await open(), await open()];
  expect([several.length, Socket.live.length]).toEqual([2, 2]);
  vi.unstubAllGlobals();
});

test("also in a page that may not use locks", async () => {
  new Room();
  vi.stubGlobal("navigator", { locks: { request: () => Promise.reject(new DOMException("no", "SecurityError")) } });
  await open();
  await open();
  expect(Socket.live).toHaveLength(2);
  vi.unstubAllGlobals();
});

test("the leader connects with the current token of its options", async () => {
  new Room();
  let token = "first";
  const subscription = subscribeShared("user_1", {
    url,
    get token() {
      return token;
    },
  });
  await until(() => subscription.state.status === "open");
  token = "second";
  subscription.reconnect();
  await until(() => Socket.all.length === 2);
  subscription.close();
  expect(Socket.all.map(({ protocols }) => protocols[1])).toEqual(["bearer.first", "bearer.second"]);
});

test("a tab that becomes visible makes the leader reconnect", async () => {
  new Room();
  const leader = await open("user_1", { maxReconnects: 0 });
  const document = Object.assign(new EventTarget(), { visibilityState: "hidden" });
  vi.stubGlobal("document", document); // of the other tab: the leader cannot observe it
  const other = await open("user_1", { maxReconnects: 0 });
  Socket.last.end(1006);
  await until(() => [leader, other].every(({ status }) => status === "closed"));
  document.dispatchEvent(new Event("visibilitychange"));
  await settle();
  expect(Socket.all).toHaveLength(1); // the tab is hidden
  document.visibilityState = "visible";
  document.dispatchEvent(new Event("visibilitychange"));
  await until(() => [leader, other].every(({ status }) => status === "open"));
  expect(Socket.all).toHaveLength(2);
});
