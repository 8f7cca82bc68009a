/** What an object stores, and when it deletes it. PROTOCOL.md, "Guarantees". */

import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import { AgeCheck, CONFIRM_MS } from "../src/stores/ages";
import { fill, freshUser, history, later, publish, request, roomStub, Subscriber, token } from "./client";

const HOUR = 3_600_000;

afterEach(() => {
  vi.useRealTimers();
});

/** Run two alarms, so that expired data is deleted. */
async function sweep(room: string): Promise<void> {
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  await evictDurableObject(roomStub(room)); // the first reading survives
  later(CONFIRM_MS);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
}

function tables(room: string): Promise<unknown[]> {
  return runInDurableObject(roomStub(room), (_, { storage }) =>
    storage.sql.exec("SELECT name FROM sqlite_master WHERE name NOT LIKE '\\_cf%' ESCAPE '\\'").toArray(),
  );
}

test("reading creates no storage", async () => {
  const { user, room } = freshUser();
  await history(room, await token({ sub: user }));
  const subscriber = await Subscriber.open(room, await token({ sub: user }));
  await subscriber.control("synap.subscribed");
  expect(await tables(room)).toEqual([]);
});

test("an id is deduplicated for 5 minutes", async () => {
  const { room } = freshUser();
  const first = await publish(room, "n0");
  later(4 * 60_000);
  expect(await publish(room, "n0")).toEqual({ ...first, duplicate: true });
  later(60_001);
  const second = await publish(room, "n0");
  expect(second["duplicate"]).toBe(false);
  expect(second["cursor"]).not.toBe(first["cursor"]);
});

test("a notification expires after a day, and a resume from before it reports a gap", async () => {
  const { user, room } = freshUser();
  const { cursor } = await publish(room, "n0");
  later(23 * HOUR);
  await publish(room, "n1");
  const page = async () => history(room, await token({ sub: user }), `?after=${cursor}`);
  expect(await page()).toMatchObject({ recovered: true, notifications: [{ id: "n1" }] });
  later(2 * HOUR);
  await sweep(room);
  expect(await page()).toMatchObject({ recovered: true, notifications: [{ id: "n1" }] });
  later(23 * HOUR);
  await sweep(room);
  expect(await page()).toMatchObject({ recovered: false, notifications: [] });
});

test("a request's room retains an hour", async () => {
  const room = `request_${crypto.randomUUID()}`;
  await publish(room, "n0");
  const page = async () => history(room, await token({ rooms: [room] }));
  later(59 * 60_000);
  await runDurableObjectAlarm(roomStub(room));
  expect((await page())["notifications"].length).toBe(1);
  later(2 * 60_000);
  await sweep(room);
  expect((await page())["notifications"]).toEqual([]);
});

test("when everything has expired, the alarm deletes the storage", async () => {
  const room = `request_${crypto.randomUUID()}`;
  const { cursor } = await publish(room, "n0");
  expect(await tables(room)).not.toEqual([]);
  await evictDurableObject(roomStub(room));
  later(2 * HOUR);
  await sweep(room);
  expect(await tables(room)).toEqual([]);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(false);
  // Later offsets are higher than all earlier ones, so no cursor is reused.
  const page = await history(room, await token({ rooms: [room] }), `?after=${cursor}`);
  expect(page["recovered"]).toBe(false);
  const { cursor: next } = await publish(room, "n1");
  expect(Number(next.split("-")[1])).toBeGreaterThan(Number(cursor.split("-")[1]));
});

for (const wrong of [3 * 24 * HOUR, 400 * 24 * HOUR]) {
  test(`a clock that is ${wrong / HOUR} h ahead for a moment deletes and hides nothing`, async () => {
    const { user, room } = freshUser();
    const [first, last] = await fill(room, 2);
    const phone = await Subscriber.open(room, await token({ sub: user }), `?device=phone&after=${first}`);
    await phone.control("synap.subscribed");
    phone.socket.close(1000);
    await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
    later(wrong);
    expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
    await evictDurableObject(roomStub(room));
    const page = async (query: string) => history(room, await token({ sub: user }), query);
    expect(await page("")).toMatchObject({ recovered: true, notifications: [{}, {}] });
    expect(await page(`?after=${first}`)).toMatchObject({ recovered: true, notifications: [{}] });
    const subscriber = await Subscriber.open(room, await token({ sub: user }), "?device=phone");
    expect(await subscriber.control("synap.subscribed")).toMatchObject({ replayed: 1, recovered: true });
    subscriber.socket.close(1000);
    await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
    vi.useRealTimers();
    await runDurableObjectAlarm(roomStub(room)); // the clock is right again: the first reading was wrong
    later(CONFIRM_MS + 1000);
    await runDurableObjectAlarm(roomStub(room));
    expect((await page(`?after=${first}`))["cursor"]).toBe(last);
    await publish(room, "n2");
    expect((await page(""))["notifications"].length).toBe(3);
  });
}

test("a second reading deletes only what the first one found expired", async () => {
  const room = `request_${crypto.randomUUID()}`;
  await publish(room, "n0");
  later(30 * 60_000);
  await publish(room, "n1");
  later(31 * 60_000);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  later(2 * HOUR);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  const page = await history(room, await token({ rooms: [room] }));
  expect(page).toMatchObject({ notifications: [{ id: "n1" }] });
});

test("a device that was not seen for 30 days is forgotten", async () => {
  const { user, room } = freshUser();
  const devices = () =>
    runInDurableObject(roomStub(room), (_, { storage }) => [...storage.kv.list({ prefix: "device " })].length);
  await publish(room, "n0");
  const subscriber = await Subscriber.open(room, await token({ sub: user }), "?device=phone");
  await subscriber.control("synap.subscribed");
  subscriber.socket.close(1000);
  await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
  later(29 * 24 * HOUR);
  await sweep(room);
  expect(await devices()).toBe(1);
  later(24 * HOUR);
  await sweep(room);
  expect(await devices()).toBe(0);
});

test("an id that was removed from the log is kept for 5 minutes and no longer", async () => {
  const { room } = freshUser();
  await fill(room, 1000);
  await fill(room, 1000, 1000); // the first thousand are removed from the log
  later(301_000);
  await fill(room, 1, 2000);
  const { rows } = await runInDurableObject(roomStub(room), (_, { storage }) =>
    storage.sql.exec<{ rows: number }>("SELECT count(*) AS rows FROM log").one(),
  );
  expect(rows).toBe(1000); // what is in the log
});

test("expired data is deleted after the last subscriber", async () => {
  const room = `workspace_${crypto.randomUUID()}`;
  const credential = await token({ rooms: [room] }, 7 * 86_400);
  await publish(room, "n0");
  const stream = await request(`/rooms/${room}/events`, credential); // it has no idle timeout
  later(36 * HOUR);
  await sweep(room);
  expect(await tables(room)).not.toEqual([]); // there is a subscriber
  await runInDurableObject(roomStub(room), (_, { storage }) => storage.deleteAlarm());
  await evictDurableObject(roomStub(room));
  await stream.body!.cancel();
  await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect(await tables(room)).toEqual([]);
});

test("a forgotten device is registered again when it acknowledges", async () => {
  const { user, room } = freshUser();
  const [first] = await fill(room, 2);
  const subscriber = await Subscriber.open(room, await token({ sub: user }), "?device=phone");
  await subscriber.control("synap.subscribed");
  await runInDurableObject(roomStub(room), (_, { storage }) => void storage.kv.delete("device phone"));
  subscriber.send(JSON.stringify({ action: "ack", cursor: first }));
  await vi.waitFor(async () =>
    expect(
      await runInDurableObject(roomStub(room), (_, { storage }) => storage.kv.get("device phone")),
    ).toMatchObject({ acknowledged: Number(first!.split("-")[1]) }),
  );
});

test("a device that acknowledges the future still receives notifications", async () => {
  const { user, room } = freshUser();
  const [cursor] = await fill(room, 1);
  const future = `${cursor!.split("-")[0]}-999999999999999999`;
  const claims = await Subscriber.open(room, await token({ sub: user }), `?device=phone&after=${future}`);
  expect(await claims.control("synap.subscribed")).toMatchObject({ recovered: false });
  claims.socket.close(1000);
  await fill(room, 1, 1);
  const subscriber = await Subscriber.open(room, await token({ sub: user }), "?device=phone");
  expect((await subscriber.json())["id"]).toBe("n1");
  expect(await subscriber.control("synap.subscribed")).toMatchObject({ replayed: 1, recovered: true });
});

test("an acknowledgement of removed notifications is kept", async () => {
  const { user, room } = freshUser();
  const { cursor } = await publish(room, "n0");
  const acknowledges = await Subscriber.open(room, await token({ sub: user }));
  await acknowledges.control("synap.subscribed");
  acknowledges.send(JSON.stringify({ action: "ack", cursor }));
  acknowledges.socket.close(1000);
  await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
  const old = await Subscriber.open(room, await token({ sub: user }), "", false);
  await publish(room, "n1");
  expect((await old.json())["id"]).toBe("n1"); // this client does not acknowledge, so delivery counts
  old.socket.close(1000);
  await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
  later(23 * HOUR);
  await publish(room, "n2");
  later(12 * HOUR);
  await sweep(room); // n0 and n1 are deleted
  await evictDurableObject(roomStub(room));
  const subscriber = await Subscriber.open(room, await token({ sub: user }));
  expect((await subscriber.json())["id"]).toBe("n2");
  expect(await subscriber.control("synap.subscribed")).toMatchObject({ replayed: 1, recovered: true });
});

test("an object that was used by another class keeps working", async () => {
  // That class kept its sockets in memory only. There may be foreign keys, and hibernating sockets without an
  // attachment.
  const { user, room } = freshUser();
  await runInDurableObject(roomStub(room), async (_, state) => {
    await state.storage.put("connections", 3);
    state.acceptWebSocket(new WebSocketPair()[1]);
  });
  await evictDurableObject(roomStub(room));
  expect((await publish(room, "n0"))["broadcastCount"]).toBe(0);
  const subscriber = await Subscriber.open(room, await token({ sub: user }));
  expect((await subscriber.json())["id"]).toBe("n0");
});

test("a second reading of the clock counts only after five minutes", () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const ages = new AgeCheck(keys());
  const first = Date.now();
  expect(ages.confirm(() => true)).toBeUndefined();
  vi.advanceTimersByTime(CONFIRM_MS - 1);
  expect(ages.confirm(() => true)).toBeUndefined();
  vi.advanceTimersByTime(1);
  expect(ages.confirm(() => true)).toBe(first);
  expect(ages.dueAt).toBeUndefined();
});

test("a first reading that was ahead does not delay later deletions", () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const ages = new AgeCheck(keys());
  const now = Date.now();
  vi.setSystemTime(now + 400 * 24 * HOUR);
  expect(ages.confirm(() => true)).toBeUndefined();
  vi.setSystemTime(now);
  expect(ages.confirm(() => false)).toBeUndefined();
  expect(ages.dueAt).toBeUndefined();
  expect(ages.confirm(() => true)).toBeUndefined();
  expect(ages.dueAt).toBe(now + CONFIRM_MS);
});

/** A fake of the synchronous key-value storage. */
function keys(): SyncKvStorage {
  const kept = new Map<string, unknown>();
  const put = (key: string, value: unknown) => void kept.set(key, value);
  const storage = { get: (key: string) => kept.get(key), put, delete: (key: string) => kept.delete(key) };
  return storage as unknown as SyncKvStorage;
}
