/** Many rooms on one connection. PROTOCOL.md, "Many rooms on one connection". */
import { beforeEach, describe, expect, test, vi } from "vitest";
import type { SubscribeOptions } from "../src/options.js";
import { notification, pass, recordSubscription, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

let url: string;
let number = 0;
beforeEach(() => {
  ScriptedSocket.haveRooms = true;
  url = `https://rooms${number++}.example`; // what is known about a server outlasts a test
});

const listen = (room: string, options: SubscribeOptions = {}) => recordSubscription({ url, ...options }, room);
const accept = async () => {
  await settle();
  return ScriptedSocket.last.accept("synap.v2");
};
type Action = { action: string; room?: string; after?: string; token?: string; cursor?: string };
const actions = (socket: ScriptedSocket, action = "subscribe") => (socket.actions as Action[]).filter((each) => each.action === action);
/** The server ends the replay of rooms. */
const live = (socket: ScriptedSocket, cursor: string, ...rooms: string[]) => {
  for (const room of rooms) socket.control("subscribed", { room, cursor, replayed: 0, recovered: true });
};
const send = (socket: ScriptedSocket, room: string, cursor: string, rest: object = {}) =>
  socket.json(notification(cursor, { room, id: `${room} ${cursor}`, ...rest }));
const open = () => ScriptedSocket.all.filter(({ isClosed }) => !isClosed);

test("fifty subscriptions are one connection, and each receives its room", async () => {
  const names = Array.from({ length: 50 }, (_, each) => `request_${each}`);
  const token = vi.fn(() => "t");
  const all = names.map((name) => listen(name, { token }));
  const socket = await accept();
  expect([socket.url, socket.protocols]).toEqual([`${url.replace("http", "ws")}/subscribe`, ["synap.v2", "bearer.t"]]);
  expect(token).toHaveBeenCalledTimes(1);
  expect(actions(socket).map(({ room }) => room)).toEqual(names);
  expect(all[0]?.statuses()).toEqual(["connecting"]);
  live(socket, "a-0", ...names);
  for (const name of names) send(socket, name, "a-1");
  for (const each of all) expect([each.notifications, each.statuses()]).toEqual([["a-1"], ["connecting", "open"]]);
  expect(ScriptedSocket.all).toHaveLength(1);
});

test("rooms are subscribed with their parameters", async () => {
  listen("user_1", { device: "phone", presence: true });
  listen("user_2", { after: "a-7" });
  const socket = await accept();
  expect(actions(socket)).toEqual([
    { action: "subscribe", room: "user_2", after: "a-7" },
    { action: "subscribe", room: "user_1", device: "phone", presence: true },
  ]);
});

describe("after the loss of the connection", () => {
  test("all rooms are subscribed again, with their cursors, on one connection", async () => {
    vi.mocked(Math.random).mockReturnValueOnce(0.3).mockReturnValue(0.9);
    const all = ["user_1", "request_1", "request_2"].map((room) => listen(room));
    const socket = await accept();
    live(socket, "a-0", "user_1", "request_1", "request_2");
    send(socket, "request_1", "a-5");
    socket.end(1006);
    // At the same moment, also if that is random.
    for (const { subscription } of all) expect(subscription.state).toMatchObject({ status: "reconnecting", attempt: 1, delayMs: 1075 });
    await pass(1075);
    expect(ScriptedSocket.all).toHaveLength(2);
    const again = await accept();
    expect(actions(again).map(({ room, after }) => [room, after])).toEqual([
      ["user_1", "a-0"], ["request_1", "a-5"], ["request_2", "a-0"],
    ]);
    live(again, "a-9", "user_1", "request_1", "request_2");
    for (const { subscription } of all) expect(subscription.state.status).toBe("open");
  });

  test("a server that is down is asked for one connection at a time", async () => {
    for (let each = 0; each < 20; each++) listen(`request_${each}`);
    const socket = await accept();
    socket.end(1006);
    for (const [round, ms] of [1000, 2000, 4000, 8000].entries()) {
      await pass(ms);
      expect(ScriptedSocket.all).toHaveLength(round + 2);
      ScriptedStream.areBlocked = true;
      ScriptedSocket.last.end(1006);
      await settle();
    }
  });

  test("each subscription has its own limit of reconnects", async () => {
    const once = listen("user_1", { maxReconnects: 0 });
    const ever = listen("user_2", { maxReconnects: Infinity });
    const socket = await accept();
    live(socket, "a-0", "user_1", "user_2");
    socket.end(1006);
    expect([once.subscription.state.status, ever.subscription.state.status]).toEqual(["closed", "reconnecting"]);
    await pass(1000);
    const again = await accept();
    expect(actions(again).map(({ room }) => room)).toEqual(["user_2"]);
    once.subscription.reconnect();
    await settle();
    expect(actions(again).map(({ room }) => room)).toEqual(["user_2", "user_1"]);
    expect(open()).toHaveLength(1);
  });

  test("a final close code ends all rooms", async () => {
    const all = ["user_1", "user_2"].map((room) => listen(room, { token: "t" }));
    (await accept()).end(4501, "invalid signature");
    for (const { subscription } of all)
      expect(subscription.state).toMatchObject({ status: "closed", error: { code: 4501, message: "invalid signature" } });
    await pass(60_000);
    expect(ScriptedSocket.all).toHaveLength(1);
  });
});

describe("a room that is subscribed twice", () => {
  const twice = async (options: SubscribeOptions = {}, room = "user_1", cursor = "a-5") => {
    const first = listen(room);
    const socket = await accept();
    live(socket, cursor, room);
    const second = listen(room, options);
    await settle();
    return { first, second, socket };
  };

  test("at the same time is subscribed once", async () => {
    const both = [listen("user_1"), listen("user_1")];
    const socket = await accept();
    expect(actions(socket)).toHaveLength(1);
    live(send(socket, "user_1", "a-1"), "a-1", "user_1");
    for (const { notifications, subscription } of both)
      expect([notifications, subscription.state.status]).toEqual([["a-1"], "open"]);
  });

  test.each([{ after: "latest" }, { after: "a-5" }, { after: "a-7" }])("later, with %j, receives what is new", async (options) => {
    const { first, second, socket } = await twice(options);
    expect(actions(socket)).toHaveLength(1);
    expect(second.subscription.state.status).toBe("open");
    for (const cursor of ["a-6", "a-7", "a-8"]) send(socket, "user_1", cursor);
    expect(first.notifications).toEqual(["a-6", "a-7", "a-8"]);
    expect(second.notifications).toEqual(options.after === "a-7" ? ["a-8"] : ["a-6", "a-7", "a-8"]);
    expect(second.subscription.resume).toBe("a-8");
  });

  test.each([["user_1", { after: "a-2" }, "a-2"], ["request_1", {}, "earliest"], ["user_1", { after: "earliest" }, "earliest"]] as const)(
    "later, in %s with %j, gets its replay, and the other one nothing twice", async (room, options, after) => {
      const { first, second, socket } = await twice(options, room);
      send(socket, room, "a-6"); // on its way
      expect(second.notifications).toEqual([]);
      expect(actions(socket, "unsubscribe")).toHaveLength(1);
      socket.control("unsubscribed", { room });
      expect(actions(socket)[1]).toMatchObject({ room, after });
      for (const cursor of ["a-3", "a-5", "a-6", "a-7"]) send(socket, room, cursor);
      live(socket, "a-7", room);
      expect(first.notifications).toEqual(["a-6", "a-7"]);
      expect(second.notifications).toEqual(["a-3", "a-5", "a-6", "a-7"]);
      expect(first.gaps).toEqual([]);
    });

  test.each([
    ["latest", undefined, undefined], ["latest", "a-3", "a-3"], ["latest", "earliest", "earliest"], ["latest", "latest", "latest"],
    ["a-3", "a-12", "a-3"], ["a-3", "earliest", "earliest"], ["a-3", "b-3", "earliest"], ["a-3", undefined, undefined],
  ])("at the same time, from %s and from %s, begins at %s", async (one, other, after) => {
    for (const starts of [[one, other], [other, one]]) {
      ScriptedSocket.all = [];
      url += ".x";
      for (const start of starts) listen("user_1", { after: start, persist: { getItem: () => null, setItem: () => {} } });
      expect(actions(await accept()).map((each) => each.after)).toEqual([after]);
    }
  });

  /** Only the server knows the acknowledged cursor, which may be before or after another subscription's position. */
  test.each(["latest", "a-4"])(
    "later, without a start, gets what is not acknowledged, and the other one, from %s, misses nothing", async (after) => {
      const first = listen("user_1", { after, acknowledge: false });
      const socket = await accept();
      live(socket, "a-5", "user_1");
      send(socket, "user_1", "a-6");
      const second = listen("user_1");
      await settle();
      expect(actions(socket, "unsubscribe")).toHaveLength(1);
      socket.control("unsubscribed", { room: "user_1" });
      expect(actions(socket)[1]).toEqual({ action: "subscribe", room: "user_1" });
      for (const cursor of ["a-2", "a-8"]) send(socket, "user_1", cursor); // a-7 is acknowledged
      expect(second.notifications).toEqual(["a-2", "a-8"]);
      live(socket, "a-8", "user_1");
      expect(actions(socket, "unsubscribe")).toHaveLength(2);
      socket.control("unsubscribed", { room: "user_1" });
      expect(actions(socket)[2]).toEqual({ action: "subscribe", room: "user_1", after: "a-6" });
      for (const cursor of ["a-7", "a-8"]) send(socket, "user_1", cursor);
      live(socket, "a-8", "user_1");
      expect(first.notifications).toEqual(["a-6", "a-7", "a-8"]);
      expect(second.notifications).toEqual(["a-2", "a-8"]);
      expect(actions(socket, "unsubscribe")).toHaveLength(2);
      expect([first.gaps, second.gaps]).toEqual([[], []]);
      expect(first.statuses()).toEqual(["connecting", "open"]);
    });

  test("while the end of a replay is on its way gets a replay of its own", async () => {
    const first = listen("request_1");
    const socket = await accept();
    send(socket, "request_1", "a-1");
    const second = listen("request_1");
    await settle();
    live(socket, "a-1", "request_1"); // the server had sent it before it got the unsubscribe action
    socket.control("unsubscribed", { room: "request_1" });
    expect(actions(socket)[1]).toMatchObject({ after: "earliest" });
    live(send(socket, "request_1", "a-1"), "a-1", "request_1");
    expect([first.notifications, second.notifications]).toEqual([["a-1"], ["a-1"]]);
  });

  test("at the same time, also for what is new, gives the replay only to the other one", async () => {
    const late = listen("user_1", { after: "latest" });
    const all = listen("user_1", { after: "earliest" });
    const socket = await accept();
    live(send(socket, "user_1", "a-1"), "a-1", "user_1");
    send(socket, "user_1", "a-2");
    expect([late.notifications, all.notifications]).toEqual([["a-2"], ["a-1", "a-2"]]);
    expect(late.subscription.resume).toBe("a-2");
  });

  test("is unsubscribed after the last of them, a little later", async () => {
    const { first, second, socket } = await twice({ after: "latest" });
    first.subscription.close();
    await pass(5000);
    expect(actions(socket, "unsubscribe")).toEqual([]);
    send(socket, "user_1", "a-6");
    expect([first.notifications, second.notifications]).toEqual([[], ["a-6"]]);
    const other = listen("user_2");
    await settle();
    second.subscription.close();
    await pass(999);
    expect(actions(socket, "unsubscribe")).toEqual([]);
    await pass(1);
    expect(actions(socket, "unsubscribe")).toEqual([{ action: "unsubscribe", room: "user_1" }]);
    other.subscription.close();
    expect(socket.isClosed).toBe(false);
    await pass(1000);
    expect(socket.isClosed).toBe(true);
  });

  test("that was left, and received something that nobody has seen, is replayed from its default", async () => {
    const first = listen("user_1");
    const socket = await accept();
    live(socket, "a-5", "user_1");
    first.subscription.close();
    send(socket, "user_1", "a-6");
    const second = listen("user_1");
    await settle();
    expect(actions(socket, "unsubscribe")).toHaveLength(1);
    socket.control("unsubscribed", { room: "user_1" });
    expect(actions(socket)[1]).toEqual({ action: "subscribe", room: "user_1" });
    send(socket, "user_1", "a-6");
    expect(second.notifications).toEqual(["a-6"]);
  });

  test("with another device or presence has another connection", async () => {
    await twice({ presence: true });
    expect(open()).toHaveLength(2);
  });

  test("that was left and is wanted again before it is unsubscribed continues", async () => {
    const first = listen("request_1");
    const socket = await accept();
    live(socket, "a-5", "request_1");
    const { resume } = first.subscription;
    first.subscription.close();
    const second = listen("request_1", { after: resume });
    await settle();
    expect([second.subscription.state.status, actions(socket).length]).toEqual(["open", 1]);
    second.subscription.close();
    send(socket, "request_1", "a-6"); // which nobody receives
    const third = listen("request_1", { after: "a-5" });
    await settle();
    expect(actions(socket, "unsubscribe")).toHaveLength(1);
    socket.control("unsubscribed", { room: "request_1" });
    expect(actions(socket)[1]).toMatchObject({ after: "a-5" });
    send(socket, "request_1", "a-6");
    expect(third.notifications).toEqual(["a-6"]);
    await pass(5000);
    expect(socket.isClosed).toBe(false);
  });
});

describe("the end of one room", () => {
  test("is that of its subscription, and no other", async () => {
    const [one, two] = [listen("user_1"), listen("user_2")];
    const socket = await accept();
    live(socket, "a-0", "user_1", "user_2");
    socket.control("unsubscribed", { room: "user_1", code: 4503, reason: "the key does not allow it" });
    const error = { code: 4503, message: "the key does not allow it", retriable: false };
    expect(one.subscription.state).toMatchObject({ status: "closed", error });
    expect(two.subscription.state.status).toBe("open");
    socket.control("unsubscribed", { room: "user_2", code: 4008, reason: "slow consumer", reconnectAfterMs: 300 });
    expect(two.subscription.state).toMatchObject({ status: "reconnecting", delayMs: 300, error: { code: 4008 } });
    await pass(300);
    expect(actions(socket).at(-1)).toMatchObject({ room: "user_2", after: "a-0" });
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test.each([
    ["forbidden", 403, false], ["unauthorized", 401, false], ["invalid_request", 400, false],
    ["rate_limited", 429, true], ["unavailable", 503, true],
  ])("by the error %s has the status %i", async (code, status, retriable) => {
    const { subscription } = listen("user_1");
    const socket = await accept();
    socket.control("error", { room: "user_1", action: "subscribe", code, details: "why", retryAfterMs: retriable ? 700 : undefined });
    expect(subscription.state).toMatchObject({ error: { code: status, message: "why", retriable } });
    expect(subscription.state.delayMs).toBe(retriable ? 700 : undefined);
    socket.control("error", { code: "invalid_request", details: "no action" }).control("error", { action: "ack", room: "user_1", code: "not_subscribed" });
    expect(socket.isClosed).toBe(false);
  });

  test("more than 128 rooms are a second connection", async () => {
    const all = Array.from({ length: 130 }, (_, each) => listen(`request_${each}`));
    await settle();
    expect(ScriptedSocket.all).toHaveLength(2);
    for (const socket of ScriptedSocket.all) socket.accept("synap.v2");
    expect(ScriptedSocket.all.map((socket) => actions(socket).length)).toEqual([128, 2]);
    ScriptedSocket.all[1]?.control("error", { room: "request_129", action: "subscribe", code: "too_many_rooms", details: "128" });
    await pass(0);
    await settle();
    expect(actions(await accept()).map(({ room }) => room)).toEqual(["request_129"]);
    expect(all.every(({ subscription }) => subscription.state.status !== "closed")).toBe(true);
  });
});

test("acknowledgements name the room", async () => {
  listen("user_1");
  listen("user_2", { acknowledge: false });
  const socket = await accept();
  live(socket, "a-0", "user_1", "user_2");
  send(send(socket, "user_1", "a-1"), "user_2", "a-2");
  await pass(500);
  expect(actions(socket, "ack")).toEqual([{ action: "ack", room: "user_1", cursor: "a-1" }]);
});

test("one ping for all rooms, and without a pong all reconnect", async () => {
  const all = ["user_1", "user_2"].map((room) => listen(room));
  const socket = await accept();
  live(socket, "a-0", "user_1", "user_2");
  await pass(30_000);
  expect(socket.pings).toBe(1);
  await pass(10_000);
  for (const { subscription } of all) expect(subscription.state).toMatchObject({ status: "reconnecting", error: { message: "pong timeout" } });
});

test("reconnect() replaces the connection for all rooms", async () => {
  const all = ["user_1", "user_2"].map((room) => listen(room));
  const socket = await accept();
  live(socket, "a-0", "user_1", "user_2");
  for (const { subscription } of all) subscription.reconnect();
  await pass(0);
  expect(socket.isClosed).toBe(true);
  const again = await accept();
  expect(ScriptedSocket.all).toHaveLength(2);
  expect(actions(again).map(({ room }) => room).sort()).toEqual(["user_1", "user_2"]);
});

describe("a token", () => {
  test("is renewed once for all rooms that use it", async () => {
    const token = vi.fn(() => `t${token.mock.calls.length}`);
    const rooms = ["user_1", "request_1"].map((room) => listen(room, { token }));
    const socket = await accept();
    live(socket, "a-0", "user_1", "request_1");
    socket.control("token_expiring", { expiresAt: "2030-01-01T00:00:00.000Z" });
    await settle();
    expect(actions(socket, "authenticate")).toEqual([{ action: "authenticate", token: "t2" }]);
    rooms[0]?.subscription.close();
    socket.control("token_expiring", { expiresAt: "2031-01-01T00:00:00.000Z" });
    await pass(10_000);
    expect(actions(socket, "authenticate")[1]).toEqual({ action: "authenticate", token: "t3" });
    await listen("user_3", { token });
    await settle();
    expect(actions(socket).at(-1)).toEqual({ action: "subscribe", room: "user_3" });
  });

  test("of another source is the room's own, unless it is the same", async () => {
    const own = vi.fn(() => `own${own.mock.calls.length}`);
    listen("user_1", { token: "t" });
    listen("request_1", { token: own });
    listen("request_2", { token: () => "t" });
    const socket = await accept();
    expect(socket.token).toBe("t");
    expect(actions(socket).map(({ room, token }) => [room, token])).toEqual([["user_1", undefined], ["request_1", "own1"], ["request_2", undefined]]);
    live(socket, "a-0", "user_1", "request_1");
    socket.control("token_expiring", { expiresAt: "2030-01-01T00:00:00.000Z", room: "request_1" });
    await settle();
    expect(actions(socket, "authenticate")).toEqual([{ action: "authenticate", room: "request_1", token: "own2" }]);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test("of another user gets another connection", async () => {
    listen("user_1", { token: "one" });
    const other = listen("user_2", { token: "two" });
    const socket = await accept();
    socket.control("error", { action: "subscribe", room: "user_2", code: "forbidden", details: "the token is another user's" });
    await pass(0);
    const second = await accept();
    expect([second.token, actions(second)]).toEqual(["two", [{ action: "subscribe", room: "user_2" }]]);
    live(second, "a-0", "user_2");
    expect(other.subscription.state.status).toBe("open");
    second.control("unsubscribed", { room: "user_2", code: 4503 });
    expect(other.subscription.state.status).toBe("closed");
  });

  test("that is refused ends only the rooms that use it", async () => {
    const bad = listen("user_1", { token: "bad" });
    const good = listen("user_2", { token: "good" });
    (await accept()).end(4501);
    expect(bad.subscription.state.status).toBe("closed");
    await pass(1000);
    const socket = await accept();
    live(socket, "a-0", "user_2");
    expect([socket.token, good.subscription.state.status]).toEqual(["good", "open"]);
  });

  test("that cannot be fetched does not stop other rooms", async () => {
    const good = listen("user_1", { token: "t" });
    const bad = listen("user_2", { token: () => Promise.reject(new Error("signed out")) });
    const socket = await accept();
    live(socket, "a-0", "user_1");
    expect(good.subscription.state.status).toBe("open");
    expect(bad.subscription.state).toMatchObject({ status: "reconnecting", error: { message: "no token: signed out" } });
  });
});

describe("where there is no such connection", () => {
  test("a server that answers 404 gets one connection for each room", async () => {
    ScriptedSocket.haveRooms = false;
    const all = ["user_1", "user_2"].map((room) => listen(room));
    await settle();
    expect(ScriptedSocket.all.map((socket) => new URL(socket.url).pathname)).toEqual(["/rooms/user_1/subscribe", "/rooms/user_2/subscribe"]);
    for (const socket of ScriptedSocket.all) socket.accept();
    for (const { statuses } of all) expect(statuses()).toEqual(["connecting", "open"]);
  });

  test("WebSockets that are blocked are replaced by streams", async () => {
    ScriptedSocket.areBlocked = true;
    const all = ["user_1", "user_2"].map((room) => listen(room, { token: "t" }));
    await settle();
    expect(ScriptedSocket.all.map(({ protocols }) => protocols[0])).toEqual(["synap.v2"]); // the route exists: no other one helps
    expect(ScriptedStream.all.map((stream) => new URL(stream.url).pathname)).toEqual(["/rooms/user_1/events", "/rooms/user_2/events"]);
    for (const stream of ScriptedStream.all) stream.accept();
    await settle();
    for (const { subscription } of all) expect(subscription.state).toEqual({ status: "open", transport: "sse" });
  });

  test("a handshake without an answer leads to streams after 10 s", async () => {
    const { subscription } = listen("user_1", { token: "t" });
    await pass(10_000);
    ScriptedStream.last.accept();
    await settle();
    expect(subscription.state.transport).toBe("sse");
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test("a server that is away when the page is opened is asked for one connection later", async () => {
    ScriptedSocket.areBlocked = ScriptedStream.areBlocked = true;
    const all = ["user_1", "user_2"].map((room) => listen(room, { token: "t" }));
    await settle();
    for (const { subscription } of all) expect(subscription.state.status).toBe("reconnecting");
    ScriptedSocket.areBlocked = ScriptedStream.areBlocked = false;
    ScriptedSocket.all = [];
    await pass(1000);
    expect(ScriptedSocket.all.map(({ protocols }) => protocols[0])).toEqual(["synap.v2"]);
  });
});

test("closing all before the connection is open closes it", async () => {
  const all = ["user_1", "user_2"].map((room) => listen(room));
  await settle();
  for (const { subscription } of all) subscription.close();
  expect(ScriptedSocket.last.isClosed).toBe(true);
  await pass(60_000);
  expect(ScriptedSocket.all).toHaveLength(1);
});
