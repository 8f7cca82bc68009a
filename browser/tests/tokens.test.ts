/** When a token is requested. PROTOCOL.md, "WebSocket", `synap.token_expiring`. */
import { describe, expect, test, vi } from "vitest";
import { subscribe } from "../src/subscription.js";
import { connected, recordSubscription, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

const inS = (seconds: number) => ({ expiresAt: new Date(Date.now() + seconds * 1000).toISOString() });
const sent = (socket: ScriptedSocket) => (socket.actions as { token?: string }[]).flatMap(({ token }) => token ?? []);

test("is requested once for each warning, through hundreds of renewals", async () => {
  const token = vi.fn(async () => `t${token.mock.calls.length}`);
  const { socket, subscription } = await connected({ token });
  for (let renewal = 1; renewal <= 300; renewal++) {
    socket.control("token_expiring", inS(20)).control("token_expiring", inS(20));
    await pass(10_000);
    socket.text("pong");
    expect(token).toHaveBeenCalledTimes(renewal + 1);
  }
  expect(sent(socket)).toEqual(Array.from({ length: 300 }, (_, n) => `t${n + 2}`));
  expect(subscription.state.status).toBe("open");
  expect(ScriptedSocket.all).toHaveLength(1);
});

test("that is not newer is not sent, and not requested again before it expires", async () => {
  const token = vi.fn(() => "cached");
  const { socket } = await connected({ token });
  const end = inS(30);
  for (let warning = 0; warning < 100; warning++) {
    socket.control("token_expiring", end);
    await pass(200);
  }
  expect(token).toHaveBeenCalledTimes(2);
  expect(sent(socket)).toEqual([]);
  socket.end(4401, "token expired");
  await pass(1000);
  ScriptedSocket.last.accept().control("token_expiring", end);
  await settle();
  expect(token).toHaveBeenCalledTimes(3); // only for connecting
});

test("a server that warns whenever a token arrives does not cause an endless loop", async () => {
  const token = vi.fn(async () => `t${token.mock.calls.length}`);
  const { socket } = await connected({ token });
  const answered = () => sent(socket).length;
  socket.control("token_expiring", inS(20));
  for (let round = 0; round < 600; round++) {
    const before = answered();
    await pass(10);
    if (answered() > before) socket.control("token_expiring", inS(20));
  }
  expect(token.mock.calls.length).toBeLessThanOrEqual(3); // in 6 s
});

test("a fixed token is never requested, and never sent again", async () => {
  const { socket } = await connected({ token: "fixed" });
  for (let warning = 0; warning < 20; warning++) {
    socket.control("token_expiring", inS(20 + warning));
    await pass(1000);
  }
  expect(socket.actions).toEqual([]);
});

test("a fixed token that was replaced meanwhile is sent", async () => {
  const options = { token: "old" };
  subscribe("user_1", {
    get token() {
      return options.token;
    },
  });
  await settle();
  const socket = ScriptedSocket.last.accept();
  options.token = "new";
  socket.control("token_expiring", inS(20));
  await settle();
  expect(sent(socket)).toEqual(["new"]);
});

test("over a stream, which cannot renew it, it is requested only when connecting", async () => {
  ScriptedSocket.areBlocked = true;
  const token = vi.fn(async () => `t${token.mock.calls.length}`);
  const { subscription } = recordSubscription({ token });
  await settle();
  for (let life = 1; life <= 20; life++) {
    const stream = ScriptedStream.last.accept();
    await settle();
    stream.write(`event: synap.token_expiring\ndata: ${JSON.stringify(inS(2))}\n\n`);
    await pass(2000);
    expect(token).toHaveBeenCalledTimes(life);
    stream.end();
    await settle();
    expect(subscription.state).toMatchObject({
      status: "reconnecting", delayMs: 1000, error: { code: 4401, message: "token expired" },
    });
    await pass(1000);
  }
});

test("a short-lived token that ends its connection is not a failed attempt", async () => {
  const token = vi.fn(async () => `t${token.mock.calls.length}`);
  const { subscription } = recordSubscription({ token });
  for (let life = 1; life <= 20; life++) {
    await settle();
    ScriptedSocket.last.accept();
    await pass(2000);
    ScriptedSocket.last.end(4401, "token expired");
    expect(subscription.state).toMatchObject({ status: "reconnecting", delayMs: 1000, attempt: 1 });
    await pass(1000);
  }
  expect(token).toHaveBeenCalledTimes(21);
});

describe("a function that", () => {
  test("hangs is given up after 10 s, and retried with increasing delays", async () => {
    const token = vi.fn(() => new Promise<string>(() => {}));
    const { subscription } = recordSubscription({ token, maxReconnects: Infinity });
    await pass(300_000);
    expect(token.mock.calls.length).toBeGreaterThan(8);
    expect(token.mock.calls.length).toBeLessThan(18);
    expect(subscription.state.status).not.toBe("open");
  });

  test("hangs at a renewal is not called again on that connection, and its late result is not used", async () => {
    const bring: ((token: string) => void)[] = [];
    const token = vi.fn(() => (token.mock.calls.length === 1 ? "t1" : new Promise<string>((resolve) => bring.push(resolve))));
    const { socket } = await connected({ token });
    socket.control("token_expiring", inS(30));
    await pass(5000);
    socket.control("token_expiring", inS(60));
    await pass(5000);
    expect(token).toHaveBeenCalledTimes(2);
    socket.end(1006);
    await pass(1000);
    bring[1]?.("t3");
    await settle();
    ScriptedSocket.last.accept();
    bring[0]?.("late");
    await settle();
    expect(ScriptedSocket.last.token).toBe("t3");
    expect(ScriptedSocket.last.actions).toEqual([]);
  });

  test("throws at a renewal leaves the connection open until its token expires", async () => {
    const token = vi.fn(() => {
      if (token.mock.calls.length === 2) throw new Error("signed out");
      return `t${token.mock.calls.length}`;
    });
    const { socket, subscription } = await connected({ token });
    socket.control("token_expiring", inS(30));
    await pass(1000);
    expect([subscription.state.status, socket.actions.length]).toEqual(["open", 0]);
    socket.control("token_expiring", inS(60));
    await pass(10_000);
    expect(sent(socket)).toEqual(["t3"]);
  });

  test.each([5, {}, true, "<!doctype html><title>502</title>", "two\nlines"])("brings %j fails as one that throws", async (brought) => {
    const { subscription } = recordSubscription({ token: () => brought as string });
    await settle();
    expect(ScriptedSocket.all).toEqual([]);
    expect(subscription.state).toMatchObject({ status: "reconnecting", error: { message: expect.stringMatching(/^no token: /) as string } });
  });

  test("returns an object gets an error that names the type", async () => {
    const { subscription } = recordSubscription({ token: (() => ({ token: "t" })) as unknown as () => string });
    await settle();
    expect(subscription.state.error?.message).toBe("no token: token() returned object");
  });

  test.each(["", null, undefined])("brings %j is named where the server asks for one", async (brought) => {
    const { subscription } = recordSubscription({ token: () => brought as string });
    await settle();
    ScriptedSocket.last.acceptAndRefuse(4501, "no credential: send a token or a key as Authorization: Bearer …");
    expect(subscription.state.error?.message).toMatch(/^no credential from token\(\): /);
  });

  test("returned an expired token is called again; every other invalid token is final", async () => {
    const token = vi.fn(async () => `t${token.mock.calls.length}`);
    const { subscription } = recordSubscription({ token });
    await settle();
    ScriptedSocket.last.acceptAndRefuse(4501, "token expired");
    expect(subscription.state).toMatchObject({ status: "reconnecting", error: { message: "token expired", code: 4501 } });
    await pass(1000);
    expect(ScriptedSocket.last.token).toBe("t2");
    ScriptedSocket.last.acceptAndRefuse(4501, "invalid signature");
    expect(subscription.state).toMatchObject({ status: "closed", error: { message: "invalid signature", retriable: false } });
  });
});

test("an expired fixed token is final", async () => {
  const { subscription } = recordSubscription({ token: "fixed" });
  await settle();
  ScriptedSocket.last.acceptAndRefuse(4501, "token expired");
  expect(subscription.state).toMatchObject({ status: "closed", error: { message: "token expired", retriable: false } });
  await pass(60_000);
  expect(ScriptedSocket.all).toHaveLength(1);
});
