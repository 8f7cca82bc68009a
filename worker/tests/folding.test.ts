/** Folded notifications in an object: storage, sleep, pacing, slow clients. PROTOCOL.md, "Folding". */

import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import { lengthOf, sliceOf } from "../src/protocol/codepoints";
import { Connection, type Attachment } from "../src/rooms/connection";
import { Pacer } from "../src/rooms/pacing";
import { CONFIRM_MS } from "../src/stores/ages";
import type { Publication, PublishResult } from "../src/stores/entries";
import { freshUser, history, KEY, later, publish, request, roomStub, Subscriber, token, type Json } from "./client";

afterEach(() => {
  vi.useRealTimers();
});

function append(room: string, delta: string, members: Json = {}): Json {
  const { index, key = "text", ...fold } = members;
  const data = index === undefined ? { delta } : { delta, index };
  return { rooms: [room], type: "note.creation.delta", data, fold: { key, mode: "append", ...fold } };
}

async function batch(notifications: Json[]): Promise<Json[]> {
  const response = await request("/broadcast", KEY, {
    method: "POST",
    body: JSON.stringify({ notifications }),
    headers: { "Content-Type": "application/json" },
  });
  return ((await response.json()) as Json)["results"];
}

async function texts(room: string, credential: string): Promise<string[]> {
  const { notifications } = await history(room, credential, "?limit=1000");
  return notifications.map(({ data }: Json) => data["delta"]);
}

function inStorage<Result>(room: string, read: (storage: DurableObjectStorage) => Result): Promise<Result> {
  return runInDurableObject(roomStub(room), (_, { storage }) => read(storage));
}

function countRows(room: string, table: string): Promise<number> {
  return inStorage(room, ({ sql }) => sql.exec<{ n: number }>(`SELECT count(*) AS n FROM ${table}`).one().n);
}

/** Apply what a client has received to its text, as PROTOCOL.md says. */
function apply(text: string, { data, fold }: Json): string {
  expect(fold.offset).toBeLessThanOrEqual(lengthOf(text));
  return sliceOf(text, 0, fold.offset) + data["delta"];
}

test("lengths and offsets count code points", () => {
  const text = "a😀é\u{1F469}\u200D\u{1F4BB}z";
  expect(lengthOf(text)).toBe([...text].length);
  for (let start = 0; start <= 8; start++) {
    for (let end = start; end <= 8; end++) {
      expect(sliceOf(text, start, end)).toBe([...text].slice(start, end).join(""));
    }
  }
});

test("a text survives eviction, also in the middle of it", async () => {
  const { user, room } = freshUser();
  const credential = await token({ sub: user });
  let text = "";
  for (let round = 0; round < 10; round++) {
    const pieces = Array.from({ length: 300 }, (_, n) => `${round}.${n}😀é `);
    const first = lengthOf(text);
    let offset = first;
    const notifications = pieces.map((piece) => {
      const notification = append(room, piece, { offset });
      offset += lengthOf(piece);
      return notification;
    });
    expect((await batch(notifications)).every(({ success }) => success)).toBe(true);
    text += pieces.join("");
    await evictDurableObject(roomStub(room));
    // What was answered is a duplicate also afterwards, wherever it is stored.
    const [again, wrong] = await batch([
      append(room, pieces[0]!, { offset: first }),
      append(room, "x", { offset: offset + 1 }),
    ]);
    expect(again!["rooms"][room]).toMatchObject({ duplicate: true, broadcastCount: 0 });
    expect(wrong).toMatchObject({ success: false, code: "offset_mismatch", offset, attempt: 0 });
  }
  expect(await countRows(room, "chunk")).toBeGreaterThan(1);
  expect(await texts(room, credential)).toEqual([text]);
  expect(await countRows(room, "fold")).toBe(1);
  // Pieces with an offset have no ids.
  expect(await inStorage(room, ({ sql }) => sql.exec("SELECT 1 FROM sqlite_master WHERE name = 'written'").toArray())).toEqual([]);
});

test("a publish of many pieces writes few rows", async () => {
  const { room } = freshUser();
  await batch([append(room, "x", { offset: 0 })]); // creates the tables
  const cursors: SqlStorageCursor<Record<string, SqlStorageValue>>[] = [];
  await inStorage(room, ({ sql }) => {
    const exec = sql.exec.bind(sql);
    vi.spyOn(Object.getPrototypeOf(sql), "exec").mockImplementation(((query: string, ...values: unknown[]) => {
      const cursor = exec(query, ...values);
      cursors.push(cursor);
      return cursor;
    }) as never);
  });
  const pieces = Array.from({ length: 100 }, (_, n) => append(room, "y", { offset: 1 + n }));
  expect((await batch(pieces)).every(({ success }) => success)).toBe(true);
  const written = await inStorage(room, () => cursors.reduce((sum, { rowsWritten }) => sum + rowsWritten, 0));
  vi.restoreAllMocks();
  expect(cursors.length).toBeGreaterThan(100);
  expect(written).toBe(1);
});

test("a text is deleted with its entry, and its key is forgotten", async () => {
  const room = `request_${crypto.randomUUID()}`;
  const credential = await token({ rooms: [room] }, 86_400);
  await batch([append(room, "x".repeat(10_000), { attempt: 7 }), append(room, "y", { attempt: 7 })]);
  expect(await countRows(room, "chunk")).toBe(1);
  later(50 * 60_000);
  await publish(room, "n0");
  later(20 * 60_000);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  await evictDurableObject(roomStub(room));
  later(CONFIRM_MS);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect((await history(room, credential))["notifications"]).toMatchObject([{ id: "n0" }]);
  for (const table of ["fold", "chunk"]) expect(await countRows(room, table)).toBe(0);
  const [again] = await batch([append(room, "new", { attempt: 1, offset: 0 })]);
  expect(again!["success"]).toBe(true);
  expect(await texts(room, credential)).toEqual([undefined, "new"]);
});

test("when everything has expired, the alarm deletes the storage, and a text begins again", async () => {
  const room = `request_${crypto.randomUUID()}`;
  await batch([append(room, "old")]);
  later(2 * 3_600_000);
  await runDurableObjectAlarm(roomStub(room));
  later(CONFIRM_MS);
  await runDurableObjectAlarm(roomStub(room));
  expect(await inStorage(room, ({ sql }) => sql.exec("SELECT 1 FROM sqlite_master WHERE name = 'fold'").toArray())).toEqual([]);
  await batch([append(room, "new", { offset: 0 })]);
  expect(await texts(room, await token({ rooms: [room] }))).toEqual(["new"]);
});

test("the retention counts a key once, and removes the oldest entries of both kinds", async () => {
  const { user, room } = freshUser();
  const credential = await token({ sub: user });
  await batch([append(room, "a", { key: "a" }), append(room, "b", { key: "b" })]);
  for (let n = 0; n < 20; n++) await batch([append(room, ".", { key: "b" })]);
  const notes = Array.from({ length: 999 }, (_, n) => ({ rooms: [room], id: `n${n}`, type: "note.created", data: {} }));
  await batch(notes);
  await evictDurableObject(roomStub(room));
  const page = async () => (await history(room, credential, "?limit=1000"))["notifications"];
  const found = await page();
  expect(found.length).toBe(1000);
  expect(found[0]["fold"]["key"]).toBe("b"); // a was the oldest
  await batch([append(room, "c", { key: "c" })]);
  expect((await page()).map(({ fold }: Json) => fold?.["key"]).filter(Boolean)).toEqual(["c"]);
  const { state } = await inStorage(room, ({ sql }) => ({
    state: sql.exec<{ n: number }>("SELECT count(*) AS n FROM fold").one().n,
  }));
  expect(state).toBe(1);
}, 30_000);

test("of 64 open keys, one that is idle for 10 minutes is closed for another one", async () => {
  const { user, room } = freshUser();
  await batch(Array.from({ length: 64 }, (_, n) => append(room, "x", { key: `k${n}` })));
  later(9 * 60_000);
  await batch([append(room, "y", { key: "k0" })]);
  expect((await batch([append(room, "x", { key: "more" })]))[0]).toMatchObject({ code: "too_many_keys" });
  later(61_000);
  await evictDurableObject(roomStub(room));
  expect((await batch([append(room, "x", { key: "more" })]))[0]!["success"]).toBe(true);
  // k1 was idle longest: its next write begins another text.
  await batch([append(room, "z", { key: "k1", offset: 0 }), append(room, "z", { key: "k0", offset: 2 })]);
  const found = await texts(room, await token({ sub: user }));
  expect(found.filter((text) => text === "z").length).toBe(1);
  expect(found).toContain("xyz");
});

test("what was delivered stays acknowledged when its key moves on", async () => {
  const { user, room } = freshUser();
  const old = await Subscriber.open(room, await token({ sub: user }), "", false);
  await batch([append(room, "a")]);
  expect((await old.json())["data"]).toEqual({ delta: "a" });
  await publish(room, "n0");
  expect((await old.json())["id"]).toBe("n0");
  await batch([append(room, "b")]);
  expect((await old.json())["data"]).toEqual({ delta: "b" });
  old.socket.close(1000);
  await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
  await batch([append(room, "c")]);
  await evictDurableObject(roomStub(room));
  const subscriber = await Subscriber.open(room, await token({ sub: user }));
  expect((await subscriber.json())["data"]).toEqual({ delta: "abc" });
  expect(await subscriber.control("synap.subscribed")).toMatchObject({ replayed: 1, recovered: true });
});

test("numbers of pieces survive eviction", async () => {
  const { user, room } = freshUser();
  const keys = Array.from({ length: 64 }, (_, n) => `${"k".repeat(125)}${n}`);
  const piece = (index: number) => keys.map((key) => append(room, `${index}`, { key, index }));
  await batch([...piece(0), ...piece(1), ...piece(2)]);
  const subscriber = await Subscriber.open(room, await token({ sub: user }), "?after=earliest");
  for (const _ of keys) expect((await subscriber.json())["data"]).toEqual({ delta: "012", index: 0 });
  await subscriber.control("synap.subscribed");
  for (const index of [1, 2]) {
    await evictDurableObject(roomStub(room));
    await batch(piece(2 + index));
    for (const _ of keys) expect((await subscriber.json())["data"]).toEqual({ delta: `${2 + index}`, index });
  }
  // Pieces that were joined for everyone are numbered for those who have seen all of them, too.
  const other = await Subscriber.open(room, await token({ sub: user }), "?after=latest");
  await other.control("synap.subscribed");
  const key = keys[0]!;
  await batch([append(room, "5", { key, index: 5 }), append(room, "6", { key, index: 6 })]); // one entry for everyone
  await evictDurableObject(roomStub(room));
  await batch([append(room, "7", { key, index: 7, final: true })]);
  const received = [await subscriber.json(), await subscriber.json(), await other.json(), await other.json()];
  expect(received.map(({ data }) => data)).toEqual([
    { delta: "56", index: 3 }, { delta: "7", index: 4 }, { delta: "56", index: 5 }, { delta: "7", index: 6 },
  ]);
});

test("a slow client gets the pieces that it lacks as one, without a gap", async () => {
  const { user, room } = freshUser();
  const subscriber = await Subscriber.open(room, await token({ sub: user }));
  await subscriber.control("synap.subscribed");
  let text = "";
  let next = 0;
  const take = async () => {
    const message = await subscriber.json();
    if (message["fold"] === undefined) return message;
    text = apply(text, message);
    expect(message["data"]["index"]).toBe(next++);
    return message;
  };
  await batch([append(room, "0é", { index: 0 })]);
  await take();
  await runInDurableObject(roomStub(room), () => {
    vi.spyOn(Connection.prototype, "isBehind", "get").mockReturnValue(true);
  });
  const behind = async (...notifications: Json[]) => {
    await batch(notifications);
    await new Promise((resolve) => setTimeout(resolve, 60)); // it reads the log as soon as it may
  };
  await behind(append(room, "1😀", { index: 1 }), append(room, "2", { index: 2 }));
  await take();
  await behind(append(room, "3", { index: 3 }), { rooms: [room], id: "n0", type: "note.created", data: {} }, append(room, "4", { index: 4 }));
  expect((await take())["id"]).toBe("n0");
  await take();
  await behind(append(room, "5", { index: 5, key: "other" }));
  const other = await subscriber.json();
  expect(other).toMatchObject({ data: { delta: "5", index: 0 }, fold: { key: "other", offset: 0 } });
  vi.restoreAllMocks();
  await batch([append(room, "6", { index: 5, final: true })]);
  await take();
  expect(text).toBe("0é1😀2346");
});

test("an event stream whose client reads slowly is not ended by texts that grow", async () => {
  const { user, room } = freshUser();
  const stream = await request(`/rooms/${room}/events?after=earliest`, await token({ sub: user }));
  await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(1));
  const expected = new Map<string, string>();
  for (let n = 0; n < 60; n++) {
    for (const key of ["a", "b", "c"]) {
      const text = `${n}é`.padEnd(15_000, key);
      expected.set(key, (expected.get(key) ?? "") + text);
      await batch([append(room, text, { key, index: n })]);
    }
  }
  await publish(room, "end");
  // 2.7 MB: more than a slow consumer may leave unread.
  const received = new Map<string, string>();
  const reader = stream.body!.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (let isLast = false; !isLast; ) {
    const { value, done } = await reader.read();
    expect(done).toBe(false);
    const events = (unread + value).split("\n\n");
    unread = events.pop()!;
    for (const event of events) {
      const data = /^data: (.*)$/m.exec(event)?.[1];
      if (data === undefined || event.startsWith("event:")) continue;
      const message = JSON.parse(data) as Json;
      if (message["fold"] !== undefined) {
        const { key } = message["fold"];
        received.set(key, apply(received.get(key) ?? "", message));
      }
      isLast ||= message["id"] === "end";
    }
  }
  await reader.cancel();
  expect(received).toEqual(expected);
}, 30_000);

test("a write that conflicts creates no storage", async () => {
  const { room } = freshUser();
  const results = await batch([append(room, "x", { offset: 1 }), append(room, "x", { offset: 2, key: "other" })]);
  expect(results.map(({ code }) => code)).toEqual(["offset_mismatch", "offset_mismatch"]);
  const found = await inStorage(room, ({ sql }) => sql.exec("SELECT name FROM sqlite_master WHERE name NOT LIKE '\\_cf%' ESCAPE '\\'").toArray());
  expect(found).toEqual([]);
  await batch([append(room, "x", { offset: 0 })]);
});

test("the attachment of a connection holds the parts of 64 texts", async () => {
  const { user, room } = freshUser();
  await batch(Array.from({ length: 64 }, (_, n) => append(room, "x", { key: `k${n}`, index: 0 })));
  const subscriber = await Subscriber.open(room, await token({ sub: user, device: "d".repeat(64) }), "?after=earliest");
  await subscriber.control("synap.subscribed");
  const size = await runInDurableObject(roomStub(room), (_, state) => {
    const [socket] = state.getWebSockets();
    const attachment = socket!.deserializeAttachment() as Attachment;
    const known = Object.fromEntries(
      Object.keys(attachment.numbers!).map((id) => [id, { length: 2 ** 31, nextIndex: 2 ** 31 }]),
    );
    const position = { epoch: "e".repeat(16), offset: Date.now() * 1000 };
    socket!.serializeAttachment({
      ...attachment, state: { name: "replaying", position, replayed: 0, isLost: false, known },
    });
    return Object.keys(known).length;
  });
  expect(size).toBe(64);
});

// --- pacing

function piece(key: string, text: string, final = false): Publication {
  const fold = { key, mode: "append" as const, attempt: 0, final, piece: text, length: text.length, size: text.length };
  return { id: text, text, bytes: text.length, fold };
}

/** A pacer, and what it has stored: the pieces of each call of the store. */
function pacer(intervalMs: number, bytes = 1) {
  vi.useFakeTimers();
  const stored: string[][] = [];
  const store = (publications: Publication[]): PublishResult[] => {
    stored.push(publications.map(({ text }) => text));
    return publications.map(({ id }) => ({ id, cursor: "", broadcastCount: bytes, duplicate: false }));
  };
  return { stored, pacing: new Pacer(store, intervalMs) };
}

test("pieces within the interval are stored together, the first one immediately", async () => {
  const { stored, pacing } = pacer(40);
  await pacing.publish([piece("a", "a0")]);
  expect(stored).toEqual([["a0"]]);
  const waiting = [pacing.publish([piece("a", "a1"), piece("a", "a2")]), pacing.publish([piece("a", "a3")])];
  vi.advanceTimersByTime(39);
  expect(stored.length).toBe(1);
  vi.advanceTimersByTime(1);
  expect(stored.slice(1)).toEqual([["a1", "a2", "a3"]]);
  expect((await Promise.all(waiting)).map((results) => results.map(({ id }) => id))).toEqual([["a1", "a2"], ["a3"]]);
  vi.advanceTimersByTime(40);
  await pacing.publish([piece("a", "a4")]);
  expect(stored.length).toBe(3);
});

test("whatever is no further piece stores those that wait, in order", async () => {
  const { stored, pacing } = pacer(40);
  const note = { id: "n0", text: "n0", bytes: 1 };
  for (const other of [note, piece("b", "b0"), piece("a", "end", true)]) {
    stored.length = 0;
    vi.advanceTimersByTime(40);
    await pacing.publish([piece("a", "a0")]);
    const waiting = pacing.publish([piece("a", "a1")]);
    await pacing.publish([other]);
    await waiting;
    expect(stored).toEqual([["a0"], ["a1", other.text]]);
  }
});

test("pieces that wait are bounded by their size", async () => {
  const { stored, pacing } = pacer(40);
  await pacing.publish([piece("a", "a0")]);
  const waiting = [pacing.publish([piece("a", "x".repeat(40_000))]), pacing.publish([piece("a", "y".repeat(40_000))])];
  await Promise.all(waiting);
  expect(stored.length).toBe(2);
});

test("a storage that fails fails every publish that waited for it, and nothing later", async () => {
  vi.useFakeTimers();
  let fails = false;
  const store = (publications: Publication[]): PublishResult[] => {
    if (fails) throw new Error("disk full");
    return publications.map(({ id }) => ({ id, cursor: "", broadcastCount: 0, duplicate: false }));
  };
  const pacing = new Pacer(store, 40);
  await pacing.publish([piece("a", "a0")]);
  fails = true;
  const waiting = [pacing.publish([piece("a", "a1")]), pacing.publish([piece("a", "a2")])];
  const outcomes = Promise.allSettled(waiting);
  vi.advanceTimersByTime(40);
  expect((await outcomes).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  fails = false;
  expect((await pacing.publish([piece("a", "a1")])).length).toBe(1);
});

test("an interval of 0 stores each piece immediately, and so does a clock that was set back", async () => {
  const { stored, pacing } = pacer(0);
  await pacing.publish([piece("a", "a0")]);
  await pacing.publish([piece("a", "a1")]);
  expect(stored.length).toBe(2);
  const paced = pacer(40);
  await paced.pacing.publish([piece("a", "a0")]);
  vi.setSystemTime(Date.now() - 3_600_000);
  await paced.pacing.publish([piece("a", "a1")]);
  expect(paced.stored.length).toBe(2);
});
