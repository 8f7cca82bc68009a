/** Keepalive. PROTOCOL.md, "Clients". */
import { expect, test, vi } from "vitest";
import { connected, recordSubscription, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

test("sends a ping every 30 s", async () => {
  const { socket, subscription } = await connected();
  for (let count = 1; count <= 5; count++) {
    await pass(29_999);
    expect(socket.pings).toBe(count - 1);
    await pass(1);
    expect(socket.pings).toBe(count);
    socket.text("pong");
  }
  expect(subscription.state.status).toBe("open");
});

test("a missing pong within 10 s ends the connection, whatever else arrives", async () => {
  const { socket, subscription } = await connected();
  await pass(30_000);
  socket.notify("c1");
  await pass(9_999);
  expect(subscription.state.status).toBe("open");
  await pass(1);
  expect(subscription.state).toMatchObject({ status: "reconnecting", error: { retriable: true } });
  expect(socket.isClosed).toBe(true);
  await pass(1000);
  expect(ScriptedSocket.last.after).toBe("c1");
});

test("messages after a pong timeout are ignored", async () => {
  const { socket, notifications, statuses } = await connected();
  const onmessage = socket.onmessage;
  const close = socket.onclose;
  await pass(40_000);
  onmessage?.({ data: '{"type":"a.b","data":{},"cursor":"late"}' });
  close?.({ code: 4501, reason: "" });
  expect(notifications).toEqual([]);
  expect(statuses()).toEqual(["connecting", "open", "reconnecting"]);
});

test("after the machine slept, a ping is sent before the connection is given up", async () => {
  const { socket, subscription } = await connected();
  await pass(30_000);
  expect(socket.pings).toBe(1);
  vi.setSystemTime(Date.now() + 3_600_000); // the timers stood still, the clock did not
  await pass(10_000);
  expect(socket.pings).toBe(2);
  expect(subscription.state.status).toBe("open");
  socket.text("pong"); // the connection has survived the sleep
  await pass(10_000);
  expect(subscription.state.status).toBe("open");
});

test("and without a pong, it reconnects", async () => {
  const { subscription } = await connected();
  await pass(30_000);
  vi.setSystemTime(Date.now() + 3_600_000);
  await pass(20_000);
  expect(subscription.state.status).toBe("reconnecting");
});

test("a handshake without a response is given up after 10 s for the next transport", async () => {
  recordSubscription();
  await settle();
  await pass(10_000);
  // A proxy that drops one handshake drops the next one, so it is not tried without the subprotocol.
  expect(ScriptedSocket.all.map(({ protocols }) => protocols)).toEqual([["synap.v1"]]);
  expect(ScriptedSocket.all[0]?.isClosed).toBe(true);
  expect(ScriptedStream.all).toHaveLength(1);
  await pass(10_000);
  expect(ScriptedStream.last.isAborted).toBe(true);
});

test("a stream without even a comment for 30 s is closed", async () => {
  ScriptedSocket.areBlocked = true;
  const { subscription } = recordSubscription({ token: "t" });
  await settle();
  const stream = ScriptedStream.last.accept();
  for (let count = 0; count < 8; count++) {
    await pass(15_000);
    stream.write(":\n\n");
  }
  await pass(29_999);
  expect(subscription.state.status).toBe("open");
  await pass(1);
  expect(subscription.state.status).toBe("reconnecting");
  expect(stream.isAborted).toBe(true);
});

test("also one that has never sent anything", async () => {
  ScriptedSocket.areBlocked = true;
  const { subscription } = recordSubscription({ token: "t" });
  await settle();
  ScriptedStream.last.accept();
  await pass(30_000);
  expect(subscription.state.status).toBe("reconnecting");
});
