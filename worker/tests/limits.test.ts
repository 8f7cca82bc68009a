/** Limits of callers and requests. PROTOCOL.md, "Limits". */

import { env } from "cloudflare:workers";
import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import worker from "../src/index";
import { slowConsumers } from "../src/rooms/backlog";
import { Connection, type Attachment } from "../src/rooms/connection";
import { eventStream } from "../src/http/sse";
import { Budget, PublishLimits, Rate } from "../src/auth/limits";
import { settingsOf } from "../src/settings";
import { fill, freshUser, KEY, Subscriber, request, roomStub, token, type Json } from "./client";


afterEach(() => {
  vi.useRealTimers();
});

/** A dataset that throws after a number of data points, as Cloudflare's does for one request. */
function dataset(most: number) {
  const points: AnalyticsEngineDataPoint[] = [];
  const writeDataPoint = (point: AnalyticsEngineDataPoint = {}) => {
    if (points.length === most) throw new Error("too many data points");
    points.push(point);
  };
  return { points, METRICS: { writeDataPoint } as AnalyticsEngineDataset };
}

async function batch(rooms: string[], METRICS: AnalyticsEngineDataset): Promise<Json> {
  const notification = { rooms, id: "n0", type: "note.creation.completed", data: {} };
  const asked = new Request("http://worker/broadcast", {
    method: "POST",
    body: JSON.stringify({ notifications: [notification] }),
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${KEY}` },
  });
  const answer = await worker.fetch!(asked as never, { ...env, METRICS });
  return (await answer.json()) as Json;
}

test("a batch for many rooms writes few data points", async () => {
  const rooms = Array.from({ length: 30 }, () => `request_${crypto.randomUUID()}`);
  const { points, METRICS } = dataset(25);
  expect((await batch(rooms, METRICS))["success"]).toBe(true);
  expect(points.map(({ blobs, doubles }) => [blobs, doubles![0]])).toEqual([
    [["publish", "accepted"], 30],
  ]);
});

test("a failing metric does not fail the request", async () => {
  const { METRICS } = dataset(0);
  expect((await batch([freshUser().room], METRICS))["success"]).toBe(true);
});

test("a user with the name of a key does not use the key's rate", () => {
  const settings = settingsOf({ ...env, PUBLISHES_PER_S: "10" } as unknown as Env);
  const limits = new PublishLimits(settings);
  const claims = { rooms: [], scopes: [] };
  limits.check({ ...claims, user: "key jobs" }, 10, 1);
  limits.check({ ...claims, tokenId: "key jobs" }, 10, 1);
  limits.check({ ...claims, key: "jobs" }, 10, 1);
  expect(() => limits.check({ ...claims, key: "jobs" }, 10, 1)).toThrow();
});

test("reads and handshakes of a user are limited, those of another are not", async () => {
  const limited = { ...env, REQUESTS_PER_S: "5" };
  const { user, room } = freshUser();
  const credential = await token({ sub: user });
  const statusOf = async (path: string, bearer: string, headers: Record<string, string> = {}) => {
    const all = { ...headers, Authorization: `Bearer ${bearer}` };
    const asked = new Request(`http://worker/rooms/${path}`, { headers: all });
    const answer = await worker.fetch!(asked as never, limited as never);
    answer.webSocket?.accept();
    answer.webSocket?.close(1000);
    return answer.status;
  };
  const upgrade = { Upgrade: "websocket" };
  const found: number[] = [];
  for (let n = 0; n < 60; n++) found.push(await statusOf(`${room}/history`, credential));
  expect(found.slice(0, 5)).toEqual([200, 200, 200, 200, 200]);
  expect(found).toContain(429);
  const opened: number[] = [];
  for (let n = 0; n < 60; n++) opened.push(await statusOf(`${room}/subscribe`, credential, upgrade));
  expect(opened).toContain(429);
  const other = freshUser();
  expect(await statusOf(`${other.room}/history`, await token({ sub: other.user }))).toBe(200);
});

/** A Worker with its own counts, which are stored with its settings. */
function workerWith(settings: Record<string, string>): Env {
  return { ...env, ...settings } as unknown as Env;
}

/** Return the statuses of a number of requests from an address. */
async function statuses(of: Env, count: number, address: string, path: string, init: RequestInit = {}) {
  const found: number[] = [];
  for (let n = 0; n < count; n++) {
    const headers = { "CF-Connecting-IP": address, ...(init.headers as Record<string, string>) };
    const asked = new Request(`http://worker${path}`, { ...init, headers });
    const answer = await worker.fetch!(asked as never, of);
    if (answer.status === 429) expect(Number(answer.headers.get("Retry-After"))).toBeGreaterThan(0);
    found.push(answer.status);
    await answer.body?.cancel();
  }
  return found;
}

const LIMITED = { REQUESTS_PER_S: "3" };

for (const [path, method, status] of [
  ["/nothing", "GET", 404],
  ["/metrics", "GET", 401],
  ["/health", "GET", 200],
  ["/ready", "GET", 200],
  ["/openapi.json", "GET", 200],
  ["/broadcast", "GET", 405],
  ["/broadcast", "POST", 401],
] as const) {
  test(`requests of an address without a credential are limited: ${method} ${path}`, async () => {
    vi.useFakeTimers({ toFake: ["Date"] });
    const limited = workerWith(LIMITED);
    const of = (address: string, count: number) => statuses(limited, count, address, path, { method });
    // The debt of the last one is below the burst.
    expect(await of("203.0.113.1", 5)).toEqual([status, status, status, status, 429]);
    expect(await of("203.0.113.2", 1)).toEqual([status]);
    expect(new Set(await of("127.0.0.1", 6))).toEqual(new Set([status])); // a proxy on loopback has no limit
    vi.advanceTimersByTime(1000);
    expect(await of("203.0.113.1", 1)).toEqual([status]);
  });
}

test("preflights of an address are limited", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const headers = { Origin: "https://app.example", "Access-Control-Request-Method": "POST" };
  const limited = workerWith({ ...LIMITED, ALLOWED_ORIGINS: "https://app.example" });
  const found = await statuses(limited, 5, "203.0.113.3", "/broadcast", { method: "OPTIONS", headers });
  expect(found).toEqual([204, 204, 204, 204, 429]);
});

test("an address with many invalid tokens may try no more, but may publish with a key", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const { user, room } = freshUser();
  const address = "203.0.113.4";
  const path = `/rooms/${room}/history`;
  const good = await token({ sub: user });
  const bad = `${good.slice(0, -8)}AAAAAAAA`;
  const limited = workerWith(LIMITED);
  const ask = (credential: string, from: string, count = 1, to = path, init: RequestInit = {}) => {
    const headers = { ...(init.headers as Record<string, string>), Authorization: `Bearer ${credential}` };
    return statuses(limited, count, from, to, { ...init, headers });
  };
  expect(await ask(bad, address, 5)).toEqual([401, 401, 401, 401, 429]);
  expect(await ask(good, address)).toEqual([429]);
  expect(await ask(good, "203.0.113.5")).toEqual([200]);
  const body = JSON.stringify({ type: "note.creation.completed", data: {} });
  const json = { method: "POST", body, headers: { "Content-Type": "application/json" } };
  expect(await ask(KEY, address, 1, `/rooms/${room}/broadcast`, json)).toEqual([200]);
});

test("bytes read are counted, and delay the next request", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const { user, room } = freshUser();
  await fill(room, 20);
  const limited = workerWith({ READ_BYTES_PER_S: "1000" });
  const headers = { Authorization: `Bearer ${await token({ sub: user })}` };
  const ask = (count: number) => statuses(limited, count, "127.0.0.1", `/rooms/${room}/history`, { headers });
  expect(await ask(2)).toEqual([200, 429]);
  vi.advanceTimersByTime(10_000);
  expect(await ask(1)).toEqual([200]);
});

test("rejected publishes of a user count as requests", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const { user, room } = freshUser();
  const headers = {
    Authorization: `Bearer ${await token({ sub: user, scope: "broadcast" })}`,
    "Content-Type": "application/json",
  };
  const init = { method: "POST", body: "{", headers };
  const found = await statuses(workerWith(LIMITED), 5, "127.0.0.1", `/rooms/${room}/broadcast`, init);
  expect(found).toEqual([400, 400, 400, 400, 429]);
});

test("a clock that was set back rejects no caller for long", () => {
  const budget = new Budget(10);
  budget.charge("one", 100, 1_000_000_000);
  expect(budget.waitS("one", 1_000_000_000)).toBe(9);
  expect(budget.waitS("one", 0)).toBe(0);
  budget.charge("one", 1e9, 0);
  expect(budget.waitS("one", 0)).toBe(59); // a debt of a minute, minus a burst of one second
  const rate = new Rate(1);
  expect(rate.waitS("one", 1, 1_000_000_000)).toBe(0);
  expect(rate.waitS("one", 1, 1_000_000_000)).toBe(1);
  expect(rate.waitS("one", 1, 0)).toBe(0);
});

test("the number of counted callers is bounded", () => {
  const budget = new Budget(1);
  budget.charge("first", 2, 0);
  for (let n = 0; n < 10_000; n++) budget.charge(`caller ${n}`, 2, 0);
  expect(budget.waitS("first", 0)).toBe(0); // the caller that was idle for longest was evicted
  expect(budget.waitS("caller 9999", 0)).toBe(1);
});

test("the largest backlogs of a user, and of a room, are closed first", () => {
  const MIB = 1024 * 1024;
  const waits = (user: string, bytes: number) =>
    new Connection(
      { bufferedAmount: bytes } as unknown as WebSocket,
      { lastReceivedAt: 0, id: crypto.randomUUID(), credential: { user } } as Attachment,
    );
  const honest = waits("honest", 1000);
  const greedy = Array.from({ length: 12 }, () => waits("greedy", 0.9 * MIB));
  const found = slowConsumers([...greedy, honest], Date.now());
  expect(found.length).toBe(4); // 8 of them are within 8 MiB
  expect(found).not.toContain(honest);
  const many = Array.from({ length: 50 }, (_, n) => waits(`u${n}`, MIB));
  const ended = slowConsumers([...many, honest], Date.now());
  expect(ended.length).toBe(50 - 31); // 31 MiB and the honest connections are within 32
  expect(ended).not.toContain(honest);
  expect(slowConsumers([waits("one", MIB + 1)], Date.now()).length).toBe(1);
});

test("the total backlog of unread streams is bounded", async () => {
  const gone = new AbortController();
  const rooms: WebSocket[] = [];
  const closed: number[] = [];
  const open = () => {
    const pair = new WebSocketPair();
    pair[1].accept();
    const place = rooms.push(pair[1]) - 1;
    pair[1].addEventListener("close", () => void closed.push(place));
    return eventStream(pair[0], gone.signal);
  };
  const page = `{"type":"a.b.completed","data":"${"x".repeat(500_000)}","room":"user_1","cursor":"a-1"}`;
  const streams = Array.from({ length: 60 }, open);
  for (const room of rooms) for (let n = 0; n < 2; n++) room.send(page);
  // 60 MB exceed the limit: the largest are aborted.
  await vi.waitFor(() => expect(closed.length).toBeGreaterThanOrEqual(26), { timeout: 5000 });
  expect(closed.length).toBeLessThan(40);
  gone.abort();
  await vi.waitFor(() => expect(closed.length).toBe(60), { timeout: 5000 });
  await Promise.allSettled(streams.map((stream) => stream.cancel()));
});

test("many concurrent disconnects do not stop the room", async () => {
  const { user, room } = freshUser();
  await runInDurableObject(roomStub(room), async (_, { storage }) => {
    const until = Date.now() + 5000;
    const leaving = Array.from({ length: 1000 }, (_, n) => ({ user: `u${n}`, until }));
    storage.kv.put("leaving", leaving);
  });
  await evictDurableObject(roomStub(room));
  for (const device of ["one", "two"]) {
    const subscriber = await Subscriber.open(room, await token({ sub: user }), `?device=${device}`);
    await subscriber.control("synap.subscribed");
    subscriber.socket.close(1000);
    await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
  }
  const kept = await runInDurableObject(roomStub(room), (_, { storage }) =>
    storage.kv.get<Json[]>("leaving")!,
  );
  expect(kept.length).toBe(100);
  expect(kept.at(-1)!["device"]).toBe("two");
});

test("a long-lived token sets an alarm at most 30 days ahead", async () => {
  const { user, room } = freshUser();
  const stream = await request(`/rooms/${room}/events`, await token({ sub: user }, 90 * 86_400));
  expect(stream.status).toBe(200);
  const alarm = await runInDurableObject(roomStub(room), (_, { storage }) => storage.getAlarm());
  expect(alarm).toBeGreaterThan(Date.now());
  expect(alarm).toBeLessThanOrEqual(Date.now() + 30 * 86_400_000);
  await stream.body!.cancel();
});

test("a slow consumer is one that reads nothing for 20 s, not one that reads slowly", () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const socket = { bufferedAmount: 0, send: (text: string) => void (socket.bufferedAmount += text.length) };
  const connection = new Connection(socket as unknown as WebSocket, { lastReceivedAt: 0 } as Attachment);
  for (let second = 0; second < 60; second++) {
    expect(connection.backlog.isStalled(Date.now())).toBe(false);
    connection.send("x".repeat(1000));
    socket.bufferedAmount -= 900; // the backlog grows, but the client reads
    vi.advanceTimersByTime(1000);
  }
  for (let second = 0; second < 20; second++) vi.advanceTimersByTime(1000);
  expect(connection.backlog.isStalled(Date.now())).toBe(false); // it has read something until now
  vi.advanceTimersByTime(21_000);
  expect(connection.backlog.isStalled(Date.now())).toBe(true);
});

test("a credential in place of a room or a device is rejected, an id that looks like one is not", async () => {
  const jwt = await token({ sub: "1" });
  const scoped = await token({ rooms: ["*"] });
  const statusOf = async (path: string) => {
    const answer = await request(path, scoped);
    if (answer.status === 200) await answer.body!.cancel();
    else expect(await answer.text()).not.toContain(jwt.slice(0, 30));
    return answer.status;
  };
  for (const secret of [jwt.slice(0, 60), jwt.split(".")[1]!.slice(0, 60), KEY]) {
    expect(await statusOf(`/rooms/user_${secret}/events`)).toBe(400);
    expect(await statusOf(`/rooms/user_1/events?device=${secret}`)).toBe(400);
  }
  for (const id of ["eyJ_______", "eyes", "01J9ZQ4T8V7N3M2K1H0G9F8E7D", crypto.randomUUID()]) {
    expect(await statusOf(`/rooms/user_${id}/events?device=${id}`)).toBe(200);
  }
});
