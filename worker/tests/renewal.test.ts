/** Renewal of the token of an open connection. PROTOCOL.md, "Subscribing". */

import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import type { Attachment } from "../src/rooms/connection";
import { freshUser, later, publish, roomStub, Subscriber, token } from "./client";

afterEach(() => {
  vi.useRealTimers();
});

/** Renew the token of the only connection of a room, and wait until the room has it. */
async function renew(subscriber: Subscriber, room: string, jti: string, credential: string): Promise<void> {
  subscriber.send(JSON.stringify({ action: "authenticate", token: credential }));
  await vi.waitFor(async () =>
    expect(
      await runInDurableObject(roomStub(room), (_, state) => {
        const [socket] = state.getWebSockets();
        return (socket!.deserializeAttachment() as Attachment).credential.tokenId;
      }),
    ).toBe(jti),
  );
}

/** Open a connection whose token expires in 45 s, and wait for the warning 30 s before. */
async function warned(): Promise<{ subscriber: Subscriber; user: string; room: string; exp: number }> {
  const { user, room } = freshUser();
  const exp = Math.floor(Date.now() / 1000) + 45;
  const subscriber = await Subscriber.open(room, await token({ sub: user, exp }));
  await subscriber.control("synap.subscribed");
  later(16_000);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect(await subscriber.control("synap.token_expiring")).toEqual({ expiresAt: new Date(exp * 1000).toISOString() });
  return { subscriber, user, room, exp };
}

for (const [what, ahead] of [["as early", 0], ["earlier", -5]] as const) {
  for (const isAsleep of [false, true]) {
    test(`a renewal with a token that expires ${what} causes no second warning${isAsleep ? ", after hibernation either" : ""}`, async () => {
      const { subscriber, user, room, exp } = await warned();
      if (isAsleep) await evictDurableObject(roomStub(room));
      await renew(subscriber, room, "again", await token({ sub: user, exp: exp + ahead, jti: "again" }));
      if (isAsleep) await evictDurableObject(roomStub(room));
      later(15_000); // when a first warning for the new token would be due
      await runDurableObjectAlarm(roomStub(room));
      await publish(room, "n0");
      expect((await subscriber.json())["id"]).toBe("n0"); // and no warning before it
    });
  }
}

test("a renewal with a newer token causes a new warning before it expires", async () => {
  const { subscriber, user, room, exp } = await warned();
  await renew(subscriber, room, "newer", await token({ sub: user, exp: exp + 60, jti: "newer" }));
  await publish(room, "n0");
  expect((await subscriber.json())["id"]).toBe("n0");
  later(60_000);
  subscriber.send("hello"); // otherwise the idle timeout would close it
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  const expiresAt = new Date((exp + 60) * 1000).toISOString();
  expect(await subscriber.control("synap.token_expiring")).toEqual({ expiresAt });
});
