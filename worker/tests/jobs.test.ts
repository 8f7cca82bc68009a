/** The records of jobs in an object: storage, sleep, retention. PROTOCOL.md, "Job state". */

import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import { CONFIRM_MS } from "../src/stores/ages";
import { freshUser, history, KEY, later, publish, request, roomStub, token, type Json } from "./client";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;

afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
});

/** A request whose job reports to its own room and to that of its user. */
function freshRequest() {
  const { user, room: userRoom } = freshUser();
  const id = crypto.randomUUID();
  return { id, user, userRoom, room: `request_${id}`, rooms: [userRoom, `request_${id}`] };
}

function event(name: string, requestId: string, rooms: string[], members: Json = {}): Json {
  const { run = "r1", at = 0, fold, ...data } = members;
  const seconds = String(at % 60).padStart(2, "0");
  const minutes = String(Math.floor(at / 60)).padStart(2, "0");
  return {
    rooms, requestId, data, type: `note.creation.${name}`, timestamp: `2026-01-31T12:${minutes}:${seconds}.000Z`,
    job: { event: name, name: "note.creation", runId: run }, ...(fold === undefined ? {} : { fold }),
  };
}

function piece(room: string, delta: string, fold: Json = {}): Json {
  return { rooms: [room], type: "note.creation.delta", data: { delta }, fold: { key: "r1:text", mode: "append", ...fold } };
}

async function batch(...notifications: Json[]): Promise<Json[]> {
  const response = await request("/broadcast", KEY, {
    method: "POST",
    body: JSON.stringify({ notifications }),
    headers: { "Content-Type": "application/json" },
  });
  return ((await response.json()) as Json)["results"];
}

async function job(id: string): Promise<Json | undefined> {
  const response = await request(`/jobs/${id}`, await token({ rooms: [`request_${id}`] }));
  const body = (await response.json()) as Json;
  return response.status === 404 ? undefined : body["job"];
}

async function jobs(user: string, query = ""): Promise<Json> {
  return (await (await request(`/users/${user}/jobs${query}`, await token({ sub: user }))).json()) as Json;
}

/** Run two alarms, so that expired data is deleted. */
async function sweep(room: string): Promise<void> {
  await runDurableObjectAlarm(roomStub(room));
  await evictDurableObject(roomStub(room));
  later(CONFIRM_MS);
  await runDurableObjectAlarm(roomStub(room));
}

function tables(room: string): Promise<number> {
  return runInDurableObject(roomStub(room), (_, { storage }) =>
    storage.sql.exec("SELECT 1 FROM sqlite_master WHERE name NOT LIKE '\\_cf%' ESCAPE '\\'").toArray().length,
  );
}

test("a record, its text and its closed keys survive eviction", async () => {
  const { id, user, room, rooms } = freshRequest();
  await batch(event("started", id, rooms, { at: 1, attempt: 1 }), piece(room, "é".repeat(9000)));
  await batch(piece(room, "😀"));
  await evictDurableObject(roomStub(room));
  expect(await job(id)).toMatchObject({ status: "running", text: `${"é".repeat(9000)}😀` });
  await batch(event("completed", id, rooms, { at: 2, n: 12345678901234567890n.toString() }));
  await evictDurableObject(roomStub(room));
  expect(await job(id)).toMatchObject({ status: "completed", text: `${"é".repeat(9000)}😀`, progress: 1 });
  expect((await jobs(user))["jobs"]).toMatchObject([{ status: "completed" }]);
  expect((await jobs(user))["jobs"][0]).not.toHaveProperty("text");
  for (const attempt of [0, 2 ** 31 - 1]) {
    const [late] = await batch(piece(room, "zombie", { attempt }));
    expect(late).toMatchObject({ success: false, code: "stale_attempt", attempt: 2 ** 31 - 1 });
  }
  const [late] = await batch({ ...piece(room, "", { key: "r1:progress" }) });
  expect(late).toMatchObject({ code: "stale_attempt" }); // it never had such a key
});

test("numbers that a double cannot represent are kept in a result", async () => {
  const { id, room, rooms } = freshRequest();
  const body = JSON.stringify({ notifications: [event("completed", id, rooms, { n: "N" })] }).replace('"N"', "12345678901234567890");
  await request("/broadcast", KEY, { method: "POST", body, headers: { "Content-Type": "application/json" } });
  await evictDurableObject(roomStub(room));
  const response = await request(`/jobs/${id}`, await token({ rooms: [room] }));
  expect(await response.text()).toContain('"result":{"n":12345678901234567890}');
});

test("a record outlives the log by its own retention, and then the storage is deleted", async () => {
  const { id, room, rooms } = freshRequest();
  await batch(event("started", id, rooms), piece(room, "all"), event("completed", id, rooms, { at: 1 }));
  later(2 * HOUR);
  await sweep(room);
  expect((await history(room, await token({ rooms: [room] })))["notifications"]).toEqual([]);
  expect(await job(id)).toMatchObject({ status: "completed", text: "all" });
  expect((await batch(piece(room, "zombie")))[0]).toMatchObject({ code: "stale_attempt" });
  later(6 * DAY);
  await runDurableObjectAlarm(roomStub(room));
  expect(await job(id)).toBeDefined();
  later(2 * DAY);
  await sweep(room);
  expect(await job(id)).toBeUndefined();
  expect(await tables(room)).toBe(0);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(false);
});

test("a clock that is ahead for a moment deletes no record", async () => {
  const { id, room, rooms } = freshRequest();
  await batch(event("completed", id, rooms));
  later(400 * DAY);
  await runDurableObjectAlarm(roomStub(room));
  vi.useRealTimers();
  await runDurableObjectAlarm(roomStub(room));
  later(CONFIRM_MS);
  await runDurableObjectAlarm(roomStub(room));
  expect(await job(id)).toMatchObject({ status: "completed" });
});

test("reading creates no storage", async () => {
  const { id, user, room, userRoom } = freshRequest();
  expect(await job(id)).toBeUndefined();
  expect(await jobs(user)).toMatchObject({ jobs: [], next: null });
  for (const each of [room, userRoom]) expect(await tables(each)).toBe(0);
  await publish(room, "n0");
  expect(await job(id)).toBeUndefined();
});

test("a room has 1,000 records: the one that ended longest ago is deleted", async () => {
  const { user, room } = freshUser();
  const each = (n: number, name: string) => event(name, `q${n}`, [room], { run: `r${n}`, at: n });
  await batch(...Array.from({ length: 1000 }, (_, n) => each(n, "started")));
  later(1000);
  await batch(each(7, "failed"));
  later(1000);
  await batch(each(3, "failed"));
  await evictDurableObject(roomStub(room));
  later(1000);
  await batch(each(1000, "started"));
  const ids = async () => {
    let page = await jobs(user, "?limit=600");
    const found = page["jobs"];
    while (page["next"] !== null) {
      page = await jobs(user, `?limit=600&after=${encodeURIComponent(page["next"])}`);
      found.push(...page["jobs"]);
    }
    return found.map(({ requestId }: Json) => requestId);
  };
  const found = await ids();
  expect(found.length).toBe(1000);
  expect(found).not.toContain("q7");
  await batch(each(1001, "started"));
  expect(await ids()).not.toContain("q3");
  await batch(each(1002, "started")); // none has ended
  expect(await ids()).not.toContain("q0");
}, 20_000);

test("the records of a room are bounded in bytes", async () => {
  const { user, room } = freshUser();
  const text = "x".repeat(250_000);
  for (let n = 0; n < 72; n += 3) {
    await batch(...[n, n + 1, n + 2].map((each) => event("completed", `q${each}`, [room], { run: `r${each}`, at: each, text })));
  }
  const { count, size } = await runInDurableObject(roomStub(room), (_, { storage }) =>
    storage.sql.exec<{ count: number; size: number }>("SELECT count(*) AS count, sum(size) AS size FROM job").one(),
  );
  expect(size).toBeLessThanOrEqual(16 * 1024 * 1024);
  expect(count).toBeGreaterThan(60);
  const page = await jobs(user);
  expect(page["jobs"][0]["requestId"]).toBe("q71");
  expect(page["jobs"].length).toBeLessThan(7); // a response ends early
  expect(page["next"]).toBeTypeOf("string");
}, 20_000);

test("a storage that fails keeps the record as it was, and the log", async () => {
  const { id, room } = freshRequest();
  await batch(event("started", id, [room], { at: 1 }));
  const stub = roomStub(room);
  await runInDurableObject(stub, (_, { storage }) => {
    const exec = storage.sql.exec.bind(storage.sql);
    vi.spyOn(Object.getPrototypeOf(storage.sql), "exec").mockImplementation(((query: string, ...values: unknown[]) => {
      if (query.includes("INSERT INTO job")) throw new Error("disk full");
      return exec(query, ...values);
    }) as never);
  });
  const [failed] = await batch(event("completed", id, [room], { at: 2, fold: { key: "r1:x", mode: "replace" } }));
  expect(failed).toMatchObject({ success: false, code: "unavailable" });
  vi.restoreAllMocks();
  expect(await job(id)).toMatchObject({ status: "running" });
  expect((await history(room, await token({ rooms: [room] })))["notifications"].length).toBe(1);
  const [stored] = await batch(event("completed", id, [room], { at: 2, fold: { key: "r1:x", mode: "replace" } }));
  expect(stored).toMatchObject({ success: true });
  expect(await job(id)).toMatchObject({ status: "completed" });
});

test("a batch of a run writes its record once", async () => {
  const { id, room } = freshRequest();
  await batch(event("started", id, [room]));
  const cursors: SqlStorageCursor<Record<string, SqlStorageValue>>[] = [];
  await runInDurableObject(roomStub(room), (_, { storage }) => {
    const exec = storage.sql.exec.bind(storage.sql);
    vi.spyOn(Object.getPrototypeOf(storage.sql), "exec").mockImplementation(((query: string, ...values: unknown[]) => {
      const cursor = exec(query, ...values);
      if (/job/.test(query)) cursors.push(cursor);
      return cursor;
    }) as never);
  });
  await batch(...[1, 2, 3, 4].map((at) => event("progress", id, [room], { at, progress: at / 5 })));
  const written = await runInDurableObject(roomStub(room), () => cursors.reduce((sum, each) => sum + each.rowsWritten, 0));
  expect(written).toBe(1);
  expect(await job(id)).toMatchObject({ progress: 0.8 });
});
