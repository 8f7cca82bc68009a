/** The connection registry. PROTOCOL.md, "Revoking" and "Limits". */

import { env } from "cloudflare:workers";
import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import { CONFIRM_MS } from "../src/stores/ages";
import { registryOf } from "../src/auth/registry";
import { freshUser, later, request, roomStub, Subscriber, token } from "./client";

const DAY = 24 * 3_600_000;

afterEach(() => {
  vi.useRealTimers();
});

/** The storage of a registry: its keys, and its alarm. */
function kept(of: "user" | "token", name: string) {
  return runInDurableObject(registryOf(env, of, name), async (_, { storage }) => ({
    keys: [...storage.kv.list()].length,
    alarm: await storage.getAlarm(),
  }));
}

async function revoke(what: object): Promise<unknown> {
  const answer = await request("/revoke", await token({ scope: "admin" }), {
    method: "POST",
    body: JSON.stringify(what),
    headers: { "Content-Type": "application/json" },
  });
  return answer.json();
}

test("an empty registry stores nothing", async () => {
  const { user, room } = freshUser();
  const subscriber = await Subscriber.open(room, await token({ sub: user, jti: user }));
  await subscriber.control("synap.subscribed");
  expect((await kept("user", user)).keys).toBe(1);
  expect((await kept("token", user)).keys).toBe(1);
  subscriber.socket.close(1000);
  for (const of of ["user", "token"] as const) {
    await vi.waitFor(async () => expect(await kept(of, user)).toEqual({ keys: 0, alarm: null }));
  }
});

test("connections of a failed room are removed in the daily check", async () => {
  const { user, room } = freshUser();
  const subscriber = await Subscriber.open(room, await token({ sub: user, jti: user }));
  await subscriber.control("synap.subscribed");
  const registry = registryOf(env, "token", user);
  await registry.register("one that is not there", room, undefined, 0);
  await registry.register("of a room that nobody knows", `workspace_${user}`, undefined, 0);
  later(DAY);
  expect(await runDurableObjectAlarm(registry)).toBe(true);
  expect((await kept("token", user)).keys).toBe(1); // the open connection stays
  expect((await kept("token", user)).alarm).not.toBe(null);
  expect(await revoke({ jti: user })).toEqual({ success: true, revoked: true, closed: 1 });
});

test("a revocation is kept for the maximum token lifetime", async () => {
  const { user, room } = freshUser();
  const credential = await token({ sub: user, jti: user }, 90 * 86_400);
  const subscriber = await Subscriber.open(room, credential);
  await subscriber.control("synap.subscribed");
  expect(await revoke({ jti: user })).toEqual({ success: true, revoked: true, closed: 1 });
  expect(await subscriber.closed()).toBe(4504);
  const registry = registryOf(env, "token", user);
  await evictDurableObject(registry);
  for (const days of [1, 88]) {
    later(days * DAY);
    expect(await runDurableObjectAlarm(registry)).toBe(true);
    expect((await request(`/rooms/${room}/history`, credential)).status).toBe(401);
    expect((await kept("token", user)).keys).toBe(1);
  }
  later(DAY + 120_000);
  expect((await request(`/rooms/${room}/history`, credential)).status).toBe(401); // it has expired
  expect(await runDurableObjectAlarm(registry)).toBe(true);
  later(CONFIRM_MS);
  expect(await runDurableObjectAlarm(registry)).toBe(true);
  expect(await kept("token", user)).toEqual({ keys: 0, alarm: null });
});

test("a clock that is briefly far ahead deletes no revocation", async () => {
  const { user, room } = freshUser();
  const credential = await token({ sub: user }, 90 * 86_400);
  expect(await revoke({ user })).toEqual({ success: true, revoked: true, closed: 0 });
  const registry = registryOf(env, "user", user);
  later(400 * DAY);
  expect(await runDurableObjectAlarm(registry)).toBe(true);
  await evictDurableObject(registry);
  vi.useRealTimers();
  expect(await runDurableObjectAlarm(registry)).toBe(true);
  later(CONFIRM_MS);
  expect(await runDurableObjectAlarm(registry)).toBe(true);
  expect((await request(`/rooms/${room}/history`, credential)).status).toBe(401);
});

test("a second revocation of a user extends the first", async () => {
  const { user, room } = freshUser();
  await revoke({ user });
  const registry = registryOf(env, "user", user);
  later(91 * DAY);
  expect(await runDurableObjectAlarm(registry)).toBe(true);
  const credential = await token({ sub: user });
  await revoke({ user });
  later(CONFIRM_MS);
  expect(await runDurableObjectAlarm(registry)).toBe(true);
  expect((await request(`/rooms/${room}/history`, credential)).status).toBe(401);
});

test("a token whose id is too long for an object's name is revoked", async () => {
  const { user, room } = freshUser();
  const jti = "ж".repeat(512); // the runtime limits names of objects to 1,024 bytes
  // The issuer's clock is ahead, within the leeway, so `iat` is after the revocation.
  const credential = await token({ sub: user, jti, iat: Math.floor(Date.now() / 1000) + 5 });
  await revoke({ jti });
  expect((await request(`/rooms/${room}/history`, credential)).status).toBe(401);
});

test("a token that is revoked during the handshake is rejected", async () => {
  const { user, room } = freshUser();
  const subscriber = await Subscriber.open(room, await token({ sub: user }));
  await subscriber.control("synap.subscribed");
  const jti = crypto.randomUUID();
  // The room receives the revocation before the registry has answered.
  await roomStub(room).closeRevoked({ kind: "token", subject: jti, at: Date.now() / 1000 });
  subscriber.send(JSON.stringify({ action: "authenticate", token: await token({ sub: user, jti }) }));
  expect(await subscriber.closed()).toBe(4504);
});

test("an older revocation does not shorten a newer one", async () => {
  const { user } = freshUser();
  const registry = registryOf(env, "user", user);
  for (const at of [1000, 500]) await registry.revoke({ kind: "user", subject: user, at });
  expect(await registry.isRevoked(800)).toBe(true);
});

test("a check that writes succeeds only when the write is durable", async () => {
  const registry = registryOf(env, "user", freshUser().user);
  await runInDurableObject(registry, async (instance, { storage }) => {
    const sync = vi.spyOn(storage, "sync").mockRejectedValue(new Error("its storage is full"));
    await instance.check(false);
    await expect(instance.check(true)).rejects.toThrow("full");
    sync.mockRestore();
    await instance.check(true);
  });
});
