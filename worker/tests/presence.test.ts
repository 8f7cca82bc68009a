/** Presence, also during hibernation. PROTOCOL.md, "Presence". */

import { env } from "cloudflare:workers";
import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import { registryOf } from "../src/auth/registry";
import { Presence } from "../src/rooms/presence";
import { later, request, roomStub, Subscriber, token, type Json } from "./client";

afterEach(() => {
  vi.useRealTimers();
});

test("a client that closes during hibernation leaves, and is unregistered", async () => {
  const room = `workspace_${crypto.randomUUID()}`;
  const [stays, goes] = [crypto.randomUUID(), crypto.randomUUID()];
  const claims = { rooms: [room], scope: "subscribe presence" };
  const watcher = await Subscriber.open(room, await token({ ...claims, sub: stays }), "?presence=1");
  await watcher.control("synap.subscribed");
  const other = await Subscriber.open(room, await token({ ...claims, sub: goes }));
  expect(await watcher.control("synap.presence")).toMatchObject({ event: "join", user: goes });
  await evictDurableObject(roomStub(room));
  other.socket.close(1000);
  const registry = registryOf(env, "user", goes);
  await vi.waitFor(async () =>
    expect(
      await runInDurableObject(registry, (_, { storage }) => [...storage.kv.list()].length),
    ).toBe(0),
  );
  expect((await roomStub(room).presence()).users).toContainEqual({ user: goes, connections: 0, devices: [] });
  later(6000);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect(await watcher.control("synap.presence")).toMatchObject({ event: "leave", user: goes });
});

test("a burst of devices causes one change, with a bounded list", () => {
  const presence = new Presence([]);
  presence.markPublished();
  for (let n = 0; n < 500; n++) {
    presence.join("one", `d${n}`);
    presence.leave("one", `d${n}`, n);
  }
  expect(presence.nextChange()).toMatchObject({ event: "join", user: "one", connections: 0 });
  expect(presence.nextChange()).toBeUndefined();
  expect(presence.state()[0]?.devices.length).toBe(64);
  expect(presence.leaving.length).toBe(64);
  presence.join("one", undefined); // without a device name: the list of devices does not change
  expect(presence.nextChange()).toBeUndefined();
  presence.sweep(Date.now());
  expect(presence.nextChange()).toMatchObject({ event: "update", connections: 1, devices: [] });
  presence.leave("one", undefined, 0);
  presence.join("two", "d");
  presence.leave("two", "d", 0);
  presence.sweep(Date.now());
  expect(presence.nextChange()).toMatchObject({ event: "leave", user: "one" });
  expect(presence.nextChange()).toBeUndefined(); // the other joined and left within the interval
  expect(presence.users()).toEqual([]);
});

test("users and devices may have names with a meaning in JavaScript or a log", async () => {
  const room = `workspace_${crypto.randomUUID()}`;
  const scope = "subscribe presence";
  const names = ["__proto__", "constructor", "a\"},{\"user\":\"b", "a, b", "\u2028\u2029", "\u202eevil", "😀", "ä".repeat(512), "key jobs"];
  const watcher = await Subscriber.open(room, await token({ rooms: [room], scope }), "?presence=1");
  await watcher.control("synap.presence");
  for (const sub of names) {
    const subscriber = await Subscriber.open(room, await token({ sub, rooms: [room], device: "__proto__" }));
    await subscriber.control("synap.subscribed");
    expect(await watcher.control("synap.presence")).toEqual({ event: "join", user: sub, connections: 1, devices: ["__proto__"] });
  }
  await evictDurableObject(roomStub(room));
  const answer = await request(`/rooms/${room}/presence`, await token({ rooms: [room], scope }));
  const { users } = (await answer.json()) as Json;
  expect(users.map(({ user }: Json) => user)).toEqual([...names].sort());
});

for (const [what, claims] of [
  ["a lone surrogate", { sub: "\ud800" }],
  ["a control character", { sub: "a\nb" }],
  ["a device with a control character", { sub: "1", device: "a\u0000" }],
  ["a jti with a lone surrogate", { sub: "1", jti: "\udfff" }],
  ["a room with a lone surrogate", { sub: "1", rooms: ["user_\ud800"] }],
] as const) {
  test(`a signed token with ${what} is rejected, and presence continues`, async () => {
    const room = `workspace_${crypto.randomUUID()}`;
    const rooms: readonly string[] = "rooms" in claims ? claims.rooms : [];
    const bad = await token({ ...claims, rooms: [room, ...rooms], scope: "subscribe presence" });
    expect((await request(`/rooms/${room}/presence`, bad)).status).toBe(401);
    expect((await request(`/rooms/${room}/events`, bad)).status).toBe(401);
    const good = await token({ rooms: [room], scope: "subscribe presence" });
    expect((await request(`/rooms/${room}/presence`, good)).status).toBe(200);
  });
}
