/** Who goes while the room sleeps. PROTOCOL.md, "Presence". */

import { env } from "cloudflare:workers";
import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import { holderOf } from "../src/holder";
import type { Env } from "../src/settings";
import { Listener, roomStub, token } from "./client";

afterEach(() => {
  vi.useRealTimers();
});

test("who closes while the room sleeps has left, and nobody holds the connection any more", async () => {
  const room = `workspace_${crypto.randomUUID()}`;
  const [stays, goes] = [crypto.randomUUID(), crypto.randomUUID()];
  const claims = { rooms: [room], scope: "subscribe presence" };
  const watcher = await Listener.open(room, await token({ ...claims, sub: stays }), "?presence=1");
  await watcher.told("synap.subscribed");
  const other = await Listener.open(room, await token({ ...claims, sub: goes }));
  expect(await watcher.told("synap.presence")).toMatchObject({ event: "join", user: goes });
  await evictDurableObject(roomStub(room));
  other.socket.close(1000);
  const holder = holderOf(env as unknown as Env, "user", goes);
  await vi.waitFor(async () =>
    expect(
      await runInDurableObject(holder, (_, { storage }) => [...storage.kv.list()].length),
    ).toBe(0),
  );
  expect((await roomStub(room).presence()).users).toContainEqual({ user: goes, connections: 0, devices: [] });
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 6000 });
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect(await watcher.told("synap.presence")).toMatchObject({ event: "leave", user: goes });
});
