/** What one caller, or one request, may take. PROTOCOL.md, "Limits". */

import { env } from "cloudflare:workers";
import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import worker from "../src/index";
import { Connection, type Attachment } from "../src/connection";
import { PublishLimits } from "../src/limits";
import { settingsOf, type Env } from "../src/settings";
import { freshUser, KEY, Listener, request, roomStub, token, type Json } from "./client";

const bindings = env as unknown as Env;

afterEach(() => {
  vi.useRealTimers();
});

/** A dataset that takes so many data points, as Cloudflare's does of one request; then it throws. */
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
  const answer = await worker.fetch!(asked as never, { ...bindings, METRICS });
  return (await answer.json()) as Json;
}

test("a batch for many rooms is few data points", async () => {
  const rooms = Array.from({ length: 30 }, () => `request_${crypto.randomUUID()}`);
  const { points, METRICS } = dataset(25);
  expect((await batch(rooms, METRICS))["success"]).toBe(true);
  expect(points.map(({ blobs, doubles }) => [blobs, doubles![0]])).toEqual([
    [["publish", "accepted"], 30],
  ]);
});

test("what cannot be counted has happened all the same", async () => {
  const { METRICS } = dataset(0);
  expect((await batch([freshUser().room], METRICS))["success"]).toBe(true);
});

test("a user who is called like a key takes nothing of the key's rate", () => {
  const settings = settingsOf({ ...bindings, PUBLISHES_PER_S: "10" } as unknown as Env);
  const limits = new PublishLimits(settings);
  const claims = { rooms: [], scopes: [] };
  limits.check({ ...claims, user: "key jobs" }, 10, 1);
  limits.check({ ...claims, tokenId: "key jobs" }, 10, 1);
  limits.check({ ...claims, key: "jobs" }, 10, 1);
  expect(() => limits.check({ ...claims, key: "jobs" }, 10, 1)).toThrow();
});

test("reads and handshakes of a user are limited, those of another are not", async () => {
  const limited = { ...bindings, REQUESTS_PER_S: "5" };
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

test("many who leave at once, and a room that works on", async () => {
  const { user, room } = freshUser();
  await runInDurableObject(roomStub(room), async (_, { storage }) => {
    const until = Date.now() + 5000;
    const leaving = Array.from({ length: 1000 }, (_, n) => ({ user: `u${n}`, until }));
    storage.kv.put("leaving", leaving);
  });
  await evictDurableObject(roomStub(room));
  for (const device of ["one", "two"]) {
    const listener = await Listener.open(room, await token({ sub: user }), `?device=${device}`);
    await listener.told("synap.subscribed");
    listener.socket.close(1000);
    await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(0));
  }
  const kept = await runInDurableObject(roomStub(room), (_, { storage }) =>
    storage.kv.get<Json[]>("leaving")!,
  );
  expect(kept.length).toBe(100);
  expect(kept.at(-1)!["device"]).toBe("two");
});

test("a token that lives for long: the alarm is set no further ahead than 30 days", async () => {
  const { user, room } = freshUser();
  const stream = await request(`/rooms/${room}/events`, await token({ sub: user }, 90 * 86_400));
  expect(stream.status).toBe(200);
  const alarm = await runInDurableObject(roomStub(room), (_, { storage }) => storage.getAlarm());
  expect(alarm).toBeGreaterThan(Date.now());
  expect(alarm).toBeLessThanOrEqual(Date.now() + 30 * 86_400_000);
  await stream.body!.cancel();
});

test("slow is who takes nothing for 20 s, not who takes it slowly", () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const socket = { bufferedAmount: 0, send: (text: string) => void (socket.bufferedAmount += text.length) };
  const connection = new Connection(socket as unknown as WebSocket, { heardAt: 0 } as Attachment);
  for (let second = 0; second < 60; second++) {
    expect(connection.isStalled(Date.now())).toBe(false);
    connection.send("x".repeat(1000));
    socket.bufferedAmount -= 900; // more waits each time, and yet it takes
    vi.advanceTimersByTime(1000);
  }
  for (let second = 0; second < 20; second++) vi.advanceTimersByTime(1000);
  expect(connection.isStalled(Date.now())).toBe(false); // it had taken something until now
  vi.advanceTimersByTime(21_000);
  expect(connection.isStalled(Date.now())).toBe(true);
});
