/** `/ready`. PROTOCOL.md, "HTTP". */

import { env } from "cloudflare:workers";
import { afterEach, expect, test, vi } from "vitest";

import worker from "../src/index";
import type { Env } from "../src/settings";
import { freshUser, KEY, request } from "./client";

const bindings = env as unknown as Env;

afterEach(() => {
  vi.useRealTimers();
});

test("ready while an object's storage can be had", async () => {
  expect((await request("/ready", KEY)).status).toBe(200);
});

test("an object is asked once a second at most, and writes only after a publish was not kept", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const asked: boolean[] = [];
  let isBroken = false;
  const check = async (writes: boolean) => {
    asked.push(writes);
    if (isBroken) throw new Error("its storage is full");
  };
  const broken = { idFromName: () => "", get: () => ({ check }) };
  const rooms = { idFromName: () => "", get: () => ({ publish: async () => Promise.reject(new Error("full")) }) };
  const settings = { ...bindings, HOLDER: broken, NOTIFICATION_ROOM: rooms } as unknown as Env;
  const statusOf = async (path: string, init: RequestInit = {}) =>
    (await worker.fetch!(new Request(`http://worker${path}`, init) as never, settings)).status;
  for (let n = 0; n < 10; n++) expect(await statusOf("/ready")).toBe(200);
  expect(asked).toEqual([false]);
  const { room } = freshUser();
  const published = await statusOf(`/rooms/${room}/broadcast`, {
    method: "POST",
    body: JSON.stringify({ type: "note.creation.completed", data: {} }),
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${KEY}` },
  });
  expect(published).toBe(503);
  isBroken = true;
  vi.advanceTimersByTime(1000);
  for (let n = 0; n < 10; n++) expect(await statusOf("/ready")).toBe(503);
  expect(asked).toEqual([false, true]);
  isBroken = false;
  vi.advanceTimersByTime(1000);
  expect(await statusOf("/ready")).toBe(200);
  vi.advanceTimersByTime(1000);
  expect(await statusOf("/ready")).toBe(200);
  expect(asked).toEqual([false, true, true, false]);
});
