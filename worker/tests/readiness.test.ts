/** `/ready`. PROTOCOL.md, "HTTP". */

import { env } from "cloudflare:workers";
import { afterEach, expect, test, vi } from "vitest";

import worker from "../src/index";
import { freshUser, KEY, request } from "./client";


afterEach(() => {
  vi.useRealTimers();
});

test("ready while an object's storage is available", async () => {
  expect((await request("/ready", KEY)).status).toBe(200);
});

test("an object is checked once a second at most, and writes only after a publish was not stored", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const asked: boolean[] = [];
  let isBroken = false;
  const check = async (writes: boolean) => {
    asked.push(writes);
    if (isBroken) throw new Error("its storage is full");
  };
  const broken = { idFromName: () => "", get: () => ({ check }) };
  const rooms = { idFromName: () => "", get: () => ({ publish: async () => Promise.reject(new Error("full")) }) };
  const settings = { ...env, CONNECTION_REGISTRY: broken, NOTIFICATION_ROOM: rooms } as unknown as Env;
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

/** A readiness check with a storage that can fail, and the recorded checks. */
function storage() {
  const asked: boolean[] = [];
  const state = { asked, isBroken: false };
  const check = async (writes: boolean) => {
    asked.push(writes);
    if (state.isBroken) throw new Error("its storage is full");
  };
  const settings = { ...env, CONNECTION_REGISTRY: { idFromName: () => "", get: () => ({ check }) } } as unknown as Env;
  const status = async () => (await worker.fetch!(new Request("http://worker/ready") as never, settings)).status;
  return { state, status };
}

test("a storage that could not be read must be writable before it is ready", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const { state, status } = storage();
  state.isBroken = true;
  expect(await status()).toBe(503);
  state.isBroken = false;
  for (let n = 0; n < 3; n++) {
    vi.advanceTimersByTime(1000);
    expect(await status()).toBe(200);
  }
  expect(state.asked).toEqual([false, true, false, false]);
});

test("a clock that was set back does not extend an old result", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const { state, status } = storage();
  expect(await status()).toBe(200);
  state.isBroken = true;
  vi.setSystemTime(Date.now() - 3_600_000);
  expect(await status()).toBe(503);
});
