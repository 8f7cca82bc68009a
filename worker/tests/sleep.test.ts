/** Hibernation: the state of an object afterwards. PROTOCOL.md, "Subscribing". */

import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import type { Attachment, Credential } from "../src/rooms/connection";
import { fill, freshUser, history, later, publish, request, roomStub, Subscriber, token } from "./client";

afterEach(() => {
  vi.useRealTimers();
});

test("a connection survives hibernation, and receives later notifications", async () => {
  const { user, room } = freshUser();
  const subscriber = await Subscriber.open(room, await token({ sub: user }));
  await subscriber.control("synap.subscribed");
  await publish(room, "n0");
  expect((await subscriber.json())["id"]).toBe("n0");
  await evictDurableObject(roomStub(room));
  expect((await publish(room, "n1"))["broadcastCount"]).toBe(1);
  expect((await subscriber.json())["id"]).toBe("n1");
});

test("a ping is answered during hibernation", async () => {
  const { user, room } = freshUser();
  const subscriber = await Subscriber.open(room, await token({ sub: user }));
  await subscriber.control("synap.subscribed");
  await evictDurableObject(roomStub(room));
  subscriber.send("ping");
  expect(await subscriber.text()).toBe("pong");
  await expect(evictDurableObject(roomStub(room))).rejects.toThrow(); // the object is not running
});

test("the user and the device survive hibernation", async () => {
  const { user, room } = freshUser();
  const scope = "subscribe presence";
  const one = await Subscriber.open(room, await token({ sub: user, scope, device: "phone" }), "?presence=1");
  await one.control("synap.subscribed");
  await evictDurableObject(roomStub(room));
  const two = await Subscriber.open(room, await token({ sub: user, device: "laptop" }));
  const update = await one.control("synap.presence");
  expect(update).toEqual({ event: "update", user, connections: 2, devices: ["laptop", "phone"] });
  await evictDurableObject(roomStub(room));
  const there = await request(`/rooms/${room}/presence`, await token({ sub: user, scope }));
  expect(await there.json()).toEqual({
    room,
    connections: 2,
    users: [{ user, connections: 2, devices: ["laptop", "phone"] }],
  });
  two.socket.close(1000);
  await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(1));
  await evictDurableObject(roomStub(room)); // within the grace period
  later(6000);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect((await one.control("synap.presence"))["devices"]).toEqual(["phone"]);
});

test("acknowledgements survive hibernation", async () => {
  const { user, room } = freshUser();
  const [first, second] = await fill(room, 3);
  const subscriber = await Subscriber.open(room, await token({ sub: user }), "?device=phone");
  await subscriber.control("synap.subscribed");
  for (const cursor of [first, second]) {
    subscriber.send(JSON.stringify({ action: "ack", cursor }));
    await vi.waitFor(async () => {
      const another = await Subscriber.open(room, await token({ sub: user }), "?device=phone");
      const replayed = (await another.control("synap.subscribed"))["replayed"];
      another.socket.close(1000);
      expect(replayed).toBe(cursor === first ? 2 : 1);
    });
    await evictDurableObject(roomStub(room));
  }
});

test("a thousand connections survive hibernation", async () => {
  const room = `workspace_${crypto.randomUUID()}`;
  const users = Array.from({ length: 25 }, (_, n) => `u${10 + n}`);
  const brief = users.at(-1)!; // its token expires first
  const listeners: { user: string; subscriber: Subscriber }[] = [];
  for (const user of users) {
    const credential = await token({ sub: user, rooms: [room] }, user === brief ? 45 : 900);
    const opened = Array.from({ length: 40 }, () => Subscriber.open(room, credential, "", false));
    for (const subscriber of await Promise.all(opened)) listeners.push({ user, subscriber });
  }
  /** Each subscriber receives it once, before the answer to a ping. */
  const publishTo = async (those: typeof listeners, id: string) => {
    expect((await publish(room, id))["broadcastCount"]).toBe(those.length);
    for (const { subscriber } of those) {
      expect((await subscriber.json())["id"]).toBe(id);
      subscriber.send("ping");
      expect(await subscriber.text()).toBe("pong");
    }
  };

  await evictDurableObject(roomStub(room));
  for (const { subscriber } of listeners) {
    subscriber.send("ping");
    expect(await subscriber.text()).toBe("pong");
  }
  await expect(evictDurableObject(roomStub(room))).rejects.toThrow(); // the pings have not woken the object
  await publishTo(listeners, "n0");

  await evictDurableObject(roomStub(room));
  const watcher = await token({ rooms: [room], scope: "presence" });
  const there = await request(`/rooms/${room}/presence`, watcher);
  expect(await there.json()).toEqual({
    room,
    connections: 1000,
    users: users.map((user) => ({ user, connections: 40, devices: [] })),
  });

  await evictDurableObject(roomStub(room));
  later(50_000); // they have sent pings, so none is idle
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  for (const { user, subscriber } of listeners) {
    if (user === brief) expect(await subscriber.closed()).toBe(4401);
  }
  await publishTo(listeners.filter(({ user }) => user !== brief), "n1");
}, 60_000);

test("a sleeping connection is closed when its token is revoked: 4504", async () => {
  const { user, room } = freshUser();
  const credential = await token({ sub: user });
  const subscriber = await Subscriber.open(room, credential);
  await subscriber.control("synap.subscribed");
  await evictDurableObject(roomStub(room));
  const answer = await request("/revoke", await token({ scope: "admin" }), {
    method: "POST",
    body: JSON.stringify({ user }),
    headers: { "Content-Type": "application/json" },
  });
  expect(await answer.json()).toEqual({ success: true, revoked: true, closed: 1 });
  expect(await subscriber.closed()).toBe(4504);
  expect((await request(`/rooms/${room}/history`, credential)).status).toBe(401);
});

test("a connection whose key was removed by a deployment is closed when the room wakes: 4401", async () => {
  const room = `workspace_${crypto.randomUUID()}`;
  const claims = { rooms: [room] };
  const removed = await Subscriber.open(room, await token({ ...claims, sub: "a" }));
  const without = await Subscriber.open(room, await token({ ...claims, sub: "b" }));
  const stays = await Subscriber.open(room, await token({ ...claims, sub: "c" }));
  for (const each of [removed, without, stays]) await each.control("synap.subscribed");
  await runInDurableObject(roomStub(room), (_, state) => {
    for (const socket of state.getWebSockets()) {
      const attachment = socket.deserializeAttachment() as Attachment;
      const { anchor, ...kept } = attachment.credential;
      const store = (credential: Credential) => socket.serializeAttachment({ ...attachment, credential });
      expect(anchor).toMatch(/^.{16}$/);
      if (kept.user === "a") store({ ...kept, anchor: "of another key" });
      if (kept.user === "b") store(kept); // as opened before keys were configured
    }
  });
  await evictDurableObject(roomStub(room));
  expect((await publish(room, "n0"))["broadcastCount"]).toBe(1);
  expect(await removed.closed()).toBe(4401); // and nothing before it
  expect(await without.closed()).toBe(4401);
  expect((await stays.json())["id"]).toBe("n0");
});

test("a token that expires during hibernation: a warning 30 s before, then 4401", async () => {
  const { user, room } = freshUser();
  const subscriber = await Subscriber.open(room, await token({ sub: user }, 600));
  await subscriber.control("synap.subscribed");
  await evictDurableObject(roomStub(room));
  later(580_000);
  subscriber.send("hello"); // otherwise the idle timeout would close it
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect(Object.keys(await subscriber.control("synap.token_expiring"))).toEqual(["expiresAt"]);
  await evictDurableObject(roomStub(room));
  later(30_000);
  subscriber.send("hello");
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect(await subscriber.closed()).toBe(4401);
});

test("a client without text pings has no idle timeout", async () => {
  const { user, room } = freshUser();
  const quiet = await Subscriber.open(room, await token({ sub: user }));
  await quiet.control("synap.subscribed");
  await evictDurableObject(roomStub(room));
  later(80_000);
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect((await publish(room, "n0"))["broadcastCount"]).toBe(1);
  expect((await quiet.json())["id"]).toBe("n0");
});

test("an idle client is closed after 75 s, also during hibernation: 4009", async () => {
  const { user, room } = freshUser();
  const silent = await Subscriber.open(room, await token({ sub: user }));
  const pings = await Subscriber.open(room, await token({ sub: user }));
  for (const subscriber of [silent, pings]) {
    await subscriber.control("synap.subscribed");
    subscriber.send("ping");
    expect(await subscriber.text()).toBe("pong");
  }
  await evictDurableObject(roomStub(room));
  later(80_000);
  pings.send("hello");
  await vi.waitFor(async () => expect(await roomStub(room).connections()).toBe(2));
  expect(await runDurableObjectAlarm(roomStub(room))).toBe(true);
  expect(await silent.closed()).toBe(4009);
  expect((await publish(room, "n0"))["broadcastCount"]).toBe(1);
  expect((await pings.json())["id"]).toBe("n0");
});

test("the log, the ids and the retention survive hibernation", async () => {
  const { user, room } = freshUser();
  const credential = await token({ sub: user });
  const cursors = [...(await fill(room, 1000)), ...(await fill(room, 1, 1000))];
  await evictDurableObject(roomStub(room));
  const [again] = await fill(room, 1);
  expect(again).toBe(cursors[0]); // removed from the log, but within the deduplication window
  const page = await history(room, credential, `?after=${cursors[0]}&limit=1000`);
  expect(page["recovered"]).toBe(true);
  expect(page["notifications"].length).toBe(1000);
  expect((await publish(room, "end"))["duplicate"]).toBe(false);
  await evictDurableObject(roomStub(room));
  expect((await history(room, credential, `?after=${cursors[0]}`))["recovered"]).toBe(false);
});
