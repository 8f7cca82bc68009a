/** No loss, no duplicates, and reported gaps. PROTOCOL.md, "Subscribing" and "Clients". */
import { describe, expect, test } from "vitest";
import { Position } from "../src/position.js";
import { connected, recordSubscription, notification, pass, ScriptedSocket, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

/** The next connection after the present one was lost. */
async function next(): Promise<ScriptedSocket> {
  const before = ScriptedSocket.last;
  before.end(1006);
  while (ScriptedSocket.last === before) await pass(1000);
  return ScriptedSocket.last.accept();
}

describe("it resumes", () => {
  test("from its last notification", async () => {
    const { socket, subscription } = await connected();
    socket.subscribed("c1").notify("c2", "c3");
    expect((await next()).after).toBe("c3");
    expect(subscription.cursor).toBe("c3");
  });

  test("from the cursor at the end of the replay if nothing followed", async () => {
    const { socket } = await connected();
    socket.notify("c1").subscribed("c2");
    expect((await next()).after).toBe("c2");
  });

  test.each([undefined, "earliest", "latest"])("from its start as long as it has no cursor: %s", async (after) => {
    await connected({ after });
    expect((await next()).after).toBe(after ?? null);
  });

  test("an interrupted replay from its start, because only its end reports gaps", async () => {
    await connected({ after: "c0" });
    ScriptedSocket.last.notify("c1");
    const second = await next();
    expect(second.after).toBe("c0");
    second.notify("c1", "c2").subscribed("c2");
    expect((await next()).after).toBe("c2");
  });

  test("and after several interruptions from the last position, with a reported gap", async () => {
    const { gaps, notifications } = await connected({ after: "c0", maxReconnects: 9 });
    ScriptedSocket.last.notify("c1");
    (await next()).notify("c1", "c2");
    (await next()).notify("c1", "c2", "c3");
    expect(gaps).toEqual([]);
    const fourth = await next();
    expect([fourth.after, gaps, notifications]).toEqual(["c3", ["user_1"], ["c1", "c2", "c3"]]);
    fourth.notify("c4");
    expect((await next()).after).toBe("c3"); // the count was reset
  });

  test("from a log that replaced the previous one on the open connection, with a reported gap", async () => {
    const { socket, gaps, notifications } = await connected();
    socket.subscribed("c1").notify("c2");
    expect(gaps).toEqual([]);
    socket.subscribed("d2", false).notify("d3");
    expect([gaps, notifications]).toEqual([["user_1"], ["c2", "d3"]]);
    expect((await next()).after).toBe("d3");
  });

  test("from the same position after a connection without notifications, which is not a gap", async () => {
    const { socket, gaps } = await connected({ maxReconnects: 9 });
    socket.subscribed("c1");
    for (let count = 0; count < 5; count++) expect((await next()).after).toBe("c1");
    expect(gaps).toEqual([]);
  });

  test("and counts only consecutive interruptions", async () => {
    const { socket, gaps } = await connected({ after: "c0", maxReconnects: 9 });
    socket.notify("c1");
    (await next()).notify("c2");
    (await next()).notify("c3").subscribed("c3");
    (await next()).notify("c4");
    (await next()).notify("c5");
    expect((await next()).after).toBe("c3");
    expect(gaps).toEqual([]);
  });

  test("from every notification, where the server says no more than these", async () => {
    recordSubscription({ after: "c0" });
    await settle();
    ScriptedSocket.last.end(1006);
    await settle();
    ScriptedSocket.last.accept("").notify("c1", "c2").end(1006);
    await pass(1000);
    expect(ScriptedSocket.last.after).toBe("c2");
  });

  test.each(["", "ü", "a b", "x".repeat(65), 7, null])("and ignores an invalid cursor: %j", async (cursor) => {
    const { socket, subscription } = await connected();
    socket.notify("c1").json(notification("c2", { cursor })).control("subscribed", { cursor });
    expect(subscription.cursor).toBe("c1");
  });
});

describe("a duplicate id", () => {
  test("is dropped, also on the next connection, and its cursor is used", async () => {
    const { socket, notifications, subscription } = await connected();
    socket.subscribed("c0").notify("c1", "c2", "c1").json(notification("c3", { id: "c2" }));
    expect(subscription.cursor).toBe("c3");
    (await next()).notify("c2", "c4");
    expect(notifications).toEqual(["c1", "c2", "c4"]);
  });

  test("a notification without an id is always new", () => {
    const position = new Position(undefined);
    const nameless = { type: "a", data: {} };
    expect([position.isNew(nameless), position.isNew(nameless)]).toEqual([true, true]);
  });

  test("is remembered for 4,096 ids", () => {
    const position = new Position(undefined);
    const isNew = (id: number) => position.isNew({ type: "a", data: {}, id: String(id) });
    for (let id = 0; id < 4096; id++) expect(isNew(id)).toBe(true);
    expect(isNew(0)).toBe(false);
    expect(isNew(4096)).toBe(true);
    expect(isNew(1)).toBe(false);
    expect(isNew(0)).toBe(true);
  });
});

describe("`recovered: false`", () => {
  test("reports a gap after a lost connection, and the subscription continues", async () => {
    const { socket, gaps, notifications } = await connected();
    socket.subscribed("c1");
    (await next()).notify("c8").subscribed("c8", false).notify("c9");
    expect(gaps).toEqual(["user_1"]);
    expect(notifications).toEqual(["c8", "c9"]);
  });

  test("reports a gap to a subscriber with a cursor", async () => {
    const { socket, gaps } = await connected({ after: "c1" });
    socket.subscribed("c9", false);
    expect(gaps).toEqual(["user_1"]);
  });

  test.each([undefined, "earliest", "latest"])("does not report a gap to a first connection: %s", async (after) => {
    const { socket, gaps } = await connected({ after });
    socket.notify("c1").subscribed("c1", false);
    expect(gaps).toEqual([]);
  });

  test("`true` reports nothing", async () => {
    const { gaps } = await connected({ after: "c1" });
    (await next()).subscribed("c9");
    expect(gaps).toEqual([]);
  });
});

test.each([
  "",
  "x",
  "[]",
  "null",
  '"a"',
  "{}",
  '{"type":"a"}',
  '{"type":"a","data":[]}',
  '{"type":7,"data":{}}',
  '{"type":"synap.of.the.future","data":{}}',
  new ArrayBuffer(8),
])("an unknown message is skipped: %s", async (message) => {
  const { socket, notifications, subscription } = await connected();
  socket.text(message).notify("c1");
  expect(notifications).toEqual(["c1"]);
  expect(subscription.state.status).toBe("open");
});

describe("acknowledgements are sent", () => {
  const ack = (cursor: string) => ({ action: "ack", cursor });

  test("at most every half second, with the last cursor", async () => {
    const { socket } = await connected();
    socket.notify("c1", "c2");
    await pass(499);
    socket.notify("c3");
    expect(socket.actions).toEqual([]);
    await pass(1);
    expect(socket.actions).toEqual([ack("c3")]);
    socket.notify("c4");
    await pass(500);
    await pass(5000);
    expect(socket.actions).toEqual([ack("c3"), ack("c4")]);
  });

  test("immediately on close, unless already sent", async () => {
    const { socket, subscription } = await connected();
    socket.notify("c1");
    subscription.close();
    expect(socket.actions).toEqual([ack("c1")]);
    const other = await connected();
    other.socket.notify("c1");
    await pass(500);
    other.subscription.close();
    expect(other.socket.actions).toEqual([ack("c1")]);
  });

  test.each([0, 500])("on the next connection, for the last one's word may not have come: after %i ms", async (ms) => {
    const { socket } = await connected();
    socket.notify("c1");
    await pass(ms);
    const second = await next();
    second.subscribed("c1");
    await pass(500);
    expect(second.actions).toEqual([ack("c1")]);
  });

  test("but not for notifications that were not delivered", async () => {
    const { socket, subscription } = await connected({ after: "latest" });
    socket.subscribed("c7");
    await pass(1000);
    subscription.close();
    expect(socket.actions).toEqual([]);
  });

  test("not with acknowledge: false, and not to a server without synap.v1", async () => {
    const { socket, subscription } = await connected({ acknowledge: false });
    socket.notify("c1");
    await pass(1000);
    subscription.close();
    expect(socket.sent).toEqual([]);
    const plain = await connected();
    plain.socket.end(1006);
    await pass(1000);
    ScriptedSocket.last.accept("").notify("c1");
    await pass(1000);
    plain.subscription.close();
    expect(ScriptedSocket.last.sent).toEqual([]);
  });
});
