/** Who goes while the room sleeps. PROTOCOL.md, "Presence". */

import { env } from "cloudflare:workers";
import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import { holderOf } from "../src/holder";
import { Presence } from "../src/presence";
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

test("a burst of devices is one change, with a bounded list", () => {
  const presence = new Presence([]);
  presence.settle();
  for (let n = 0; n < 500; n++) {
    presence.join("one", `d${n}`);
    presence.leave("one", `d${n}`, n);
  }
  expect(presence.nextChange()).toMatchObject({ event: "join", user: "one", connections: 0 });
  expect(presence.nextChange()).toBeUndefined();
  expect(presence.state()[0]?.devices.length).toBe(64);
  expect(presence.leaving.length).toBe(64);
  presence.join("one", undefined); // no device by name: nothing that watchers do not know
  expect(presence.nextChange()).toBeUndefined();
  presence.sweep(Date.now());
  expect(presence.nextChange()).toMatchObject({ event: "update", connections: 1, devices: [] });
  presence.leave("one", undefined, 0);
  presence.join("two", "d");
  presence.leave("two", "d", 0);
  presence.sweep(Date.now());
  expect(presence.nextChange()).toMatchObject({ event: "leave", user: "one" });
  expect(presence.nextChange()).toBeUndefined(); // the other came and went unseen
  expect(presence.users()).toEqual([]);
});
