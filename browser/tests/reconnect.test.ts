/** Reconnecting: delays, positions and final errors. PROTOCOL.md, "Clients" and "Close codes". */
import { describe, expect, test, vi } from "vitest";
import { ReconnectPolicy } from "../src/reconnect.js";
import { connected, recordSubscription, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

/** Block all transports, so that each attempt fails immediately. */
const cut = () => {
  ScriptedSocket.areBlocked = ScriptedStream.areBlocked = true;
};

test("a handshake that is accepted and closed is never open", async () => {
  const { statuses, subscription } = recordSubscription({ token: "t" });
  await settle();
  ScriptedSocket.last.acceptAndRefuse(4501);
  await pass(60_000);
  expect(statuses()).toEqual(["connecting", "closed"]);
  expect(subscription.state.error).toMatchObject({ code: 4501, retriable: false });
  expect(ScriptedStream.all).toHaveLength(0);
});

test("token() times out after 10 s", async () => {
  const { states } = recordSubscription({ token: () => new Promise<string>(() => {}) });
  await pass(10_000);
  expect(states.at(-1)).toMatchObject({ status: "reconnecting", error: { message: "token() timed out" } });
});

test("a short outage does not switch to a stream if WebSockets worked before", async () => {
  const { socket } = await connected();
  ScriptedSocket.areBlocked = true;
  socket.end(1006);
  await pass(1000);
  expect(ScriptedSocket.all).toHaveLength(2);
  expect(ScriptedStream.all).toHaveLength(0);
  await pass(2000);
  expect(ScriptedSocket.all).toHaveLength(3);
  expect(ScriptedStream.all).toHaveLength(1);
});

describe("the delays", () => {
  test("are 1, 2, 4, 8 and 16 s, then the subscription closes", async () => {
    const { socket, states, subscription } = await connected();
    cut();
    socket.end(1006);
    await pass(60_000);
    const waits = states.filter(({ status }) => status === "reconnecting");
    expect(waits.map(({ delayMs }) => delayMs)).toEqual([1000, 2000, 4000, 8000, 16_000]);
    expect(waits.map(({ attempt }) => attempt)).toEqual([1, 2, 3, 4, 5]);
    expect(subscription.state.status).toBe("closed");
    expect(subscription.state.error?.retriable).toBe(true);
    const dialled = ScriptedSocket.all.length;
    await pass(3_600_000);
    expect(ScriptedSocket.all.length).toBe(dialled);
  });

  test("it reconnects after the delay, not earlier", async () => {
    const { socket } = await connected();
    socket.end(1006);
    await pass(999);
    expect(ScriptedSocket.all).toHaveLength(1);
    await pass(1);
    expect(ScriptedSocket.all).toHaveLength(2);
  });

  test("have a random jitter of up to a quarter", () => {
    const failure = { reason: "" };
    expect(new ReconnectPolicy(5, () => 1).delayAfter(failure, 0)).toBe(1250);
    const half = new ReconnectPolicy(5, () => 0.5);
    expect([1, 2, 3, 4, 5].map(() => half.delayAfter(failure, 0))).toEqual([1125, 2250, 4500, 9000, 18_000]);
  });

  test("stay at 16 s without a limit", () => {
    const policy = new ReconnectPolicy(Infinity, () => 0);
    const pauses = Array.from({ length: 100 }, () => policy.delayAfter({ reason: "" }, 0));
    expect(pauses.slice(4)).toEqual(Array<number>(96).fill(16_000));
  });

  test("maxReconnects of 0 closes at the first loss", async () => {
    const { socket, subscription } = await connected({ maxReconnects: 0 });
    socket.end(1006);
    expect(subscription.state.status).toBe("closed");
  });

  test("are reset only after a connection that was open for 5 s", async () => {
    const { socket, subscription } = await connected();
    socket.end(1006);
    expect(subscription.state.delayMs).toBe(1000);
    await pass(1000);
    ScriptedSocket.last.accept();
    await pass(4999);
    ScriptedSocket.last.end(1006);
    expect(subscription.state.delayMs).toBe(2000);
    await pass(2000);
    ScriptedSocket.last.accept();
    await pass(5000);
    ScriptedSocket.last.end(1006);
    expect(subscription.state.delayMs).toBe(1000);
  });

  test("are set by a draining server, up to a minute", async () => {
    const { socket, subscription } = await connected();
    for (const [asked, delay] of [[0, 0], [12_345, 12_345], [9e9, 60_000], [-1, 4000 * 2], ["soon", 16_000]]) {
      ScriptedSocket.last.readyState || ScriptedSocket.last.accept();
      ScriptedSocket.last.control("closing", { code: 4012, reconnectAfterMs: asked }).end(4012);
      expect(subscription.state.delayMs).toBe(delay);
      await pass(delay as number);
    }
    expect(socket.isClosed).toBe(true);
  });
});

describe("a close code", () => {
  test.each([1000, 1001, 1006, 1012, 4008, 4009, 4012, 4029, 4401, 4499])("%i: it comes back", async (code) => {
    const { socket, subscription } = await connected();
    socket.notify("c1").end(code, "because");
    expect(subscription.state).toMatchObject({ status: "reconnecting", error: { code, message: "because", retriable: true } });
    await pass(1000);
    expect(ScriptedSocket.last.after).toBe("c1");
  });

  test.each([1009, 4500, 4501, 4503, 4504, 4529, 4540, 4999])("%i: it does not", async (code) => {
    const { socket, subscription } = await connected();
    socket.end(code);
    await pass(3_600_000);
    expect(ScriptedSocket.all).toHaveLength(1);
    expect(subscription.state).toMatchObject({ status: "closed", error: { code, retriable: false } });
  });

  test("but it does after reconnect()", async () => {
    const { socket, subscription } = await connected();
    socket.end(4501);
    subscription.reconnect();
    await settle();
    expect(ScriptedSocket.all).toHaveLength(2);
    ScriptedSocket.last.accept();
    expect(subscription.state).toEqual({ status: "open", transport: "websocket" });
  });
});

describe("a token", () => {
  test("is given as a subprotocol, and never in the address", async () => {
    await connected({ token: "a.b-c_d" });
    expect(ScriptedSocket.last.protocols).toEqual(["synap.v1", "bearer.a.b-c_d"]);
    expect(ScriptedSocket.last.url).not.toContain("a.b-c_d");
  });

  test("with characters that no subprotocol may contain goes into the query", async () => {
    await connected({ token: "a b/ü" });
    expect(ScriptedSocket.last.protocols).toEqual(["synap.v1"]);
    expect(new URL(ScriptedSocket.last.url).searchParams.get("token")).toBe("a b/ü");
  });

  test.each([null, undefined, ""])("%j is none", async (token) => {
    await connected({ token: () => token });
    expect(ScriptedSocket.last.protocols).toEqual(["synap.v1"]);
    expect(ScriptedSocket.last.url).toBe("wss://rooms.example/rooms/user_1/subscribe");
  });

  test("is requested for every connection", async () => {
    let count = 0;
    const { socket } = await connected({ token: async () => `t${++count}` });
    expect(socket.token).toBe("t1");
    socket.end(4401);
    await pass(1000);
    expect(ScriptedSocket.last.token).toBe("t2");
  });

  test("that cannot be fetched is a failed attempt", async () => {
    let count = 0;
    const { states } = recordSubscription({
      token: () => {
        if (++count === 1) throw new Error("signed out");
        return count === 2 ? Promise.reject(new Error("no network")) : "t";
      },
    });
    await pass(1000);
    await pass(2000);
    expect(states.map(({ error }) => error?.message).filter(Boolean)).toEqual([
      "no token: signed out",
      "no token: no network",
    ]);
    expect(ScriptedSocket.all.map(({ token }) => token)).toEqual(["t"]);
  });

  test("that arrives after close() opens no connection", async () => {
    let bring = (_: string) => {};
    const { subscription } = recordSubscription({ token: () => new Promise((resolve) => (bring = resolve)) });
    await settle();
    subscription.close();
    bring("t");
    await settle();
    expect(ScriptedSocket.all).toHaveLength(0);
  });

  test("that fails for an outdated attempt is ignored", async () => {
    const fail: ((error: Error) => void)[] = [];
    const { subscription } = recordSubscription({ token: () => new Promise((_, reject) => fail.push(reject)) });
    await settle();
    subscription.reconnect();
    await settle();
    fail[0]?.(new Error("late"));
    await settle();
    expect(subscription.state.status).toBe("connecting");
  });

  test("that expires soon is renewed on the same connection", async () => {
    let count = 0;
    const { socket } = await connected({ token: async () => `t${++count}` });
    socket.control("token_expiring", { expiresAt: "2030-01-01T00:00:00.000Z" });
    await settle();
    expect(socket.actions).toEqual([{ action: "authenticate", token: "t2" }]);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test("is not renewed if it is fixed, and is requested again for the next connection if token() fails", async () => {
    const fixed = await connected({ token: "t" });
    fixed.socket.control("token_expiring");
    await settle();
    expect(fixed.socket.actions).toEqual([]);
    const token = vi.fn().mockResolvedValueOnce("t1").mockRejectedValueOnce(new Error("x")).mockResolvedValue("t3");
    const { socket, subscription } = await connected({ token });
    socket.control("token_expiring");
    await settle();
    expect(subscription.state.status).toBe("open");
    socket.end(4401);
    await pass(1000);
    expect(ScriptedSocket.last.token).toBe("t3");
  });
});

describe("the address", () => {
  test.each([
    ["https://a.example/base/", "wss://a.example/base"],
    ["http://a.example:8787", "ws://a.example:8787"],
    ["wss://a.example", "wss://a.example"],
    ["ws://a.example", "ws://a.example"],
    ["HTTPS://a.example", "wss://a.example"],
    ["wss://[::1]:8787/base", "wss://[::1]:8787/base"],
    [undefined, "ws://127.0.0.1:8787"],
  ])("%s", async (url, base) => {
    recordSubscription({ url }, "user_a@b|c");
    await settle();
    expect(ScriptedSocket.last.url).toBe(`${base}/rooms/user_a%40b%7Cc/subscribe`);
  });

  test("is NEXT_PUBLIC_REALTIME_URL by default", async () => {
    vi.stubEnv("NEXT_PUBLIC_REALTIME_URL", "https://of.the.environment");
    recordSubscription({ url: undefined });
    await settle();
    expect(ScriptedSocket.last.url).toBe("wss://of.the.environment/rooms/user_1/subscribe");
  });

  test("contains the start, the device and presence", async () => {
    recordSubscription({ after: "latest", device: "phone", presence: true });
    await settle();
    expect(new URL(ScriptedSocket.last.url).search).toBe("?after=latest&device=phone&presence=1");
  });

  test("that is invalid is a final error", async () => {
    vi.stubGlobal("WebSocket", function () {
      throw new DOMException("no such URL", "SyntaxError");
    });
    const { subscription } = recordSubscription({ url: "https://a%b" });
    await settle();
    expect(subscription.state).toMatchObject({ status: "closed", error: { retriable: false } });
  });
});

test("the connection is opened after subscribe() has returned", async () => {
  const { subscription } = recordSubscription();
  expect(ScriptedSocket.all).toHaveLength(0);
  subscription.close();
  await settle();
  expect(ScriptedSocket.all).toHaveLength(0);
});

test("presence events are delivered", async () => {
  const { socket, presence } = await connected({ presence: true });
  socket.control("presence", { event: "state", users: [] }).control("presence", { event: "join", user: "1" });
  expect(presence).toEqual([{ event: "state", users: [] }, { event: "join", user: "1" }]);
});

test("send() reaches only an open connection", async () => {
  const { socket, subscription } = await connected();
  subscription.send("hello");
  socket.end(1006);
  subscription.send("lost");
  subscription.close();
  subscription.send("lost");
  expect(socket.sent).toEqual(["hello"]);
});
