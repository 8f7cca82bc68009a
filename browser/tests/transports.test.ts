/** The choice of the transport, and event streams. PROTOCOL.md, "Subscribing". */
import { describe, expect, test } from "vitest";
import type { SubscribeOptions } from "../src/options.js";
import { eventStream } from "../src/stream.js";
import { webSocket, type TransportCallbacks } from "../src/transports.js";
import { connected, recordSubscription, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

/** A subscription with an open event stream, because WebSockets are blocked. */
async function streaming(options: SubscribeOptions = {}) {
  ScriptedSocket.areBlocked = true;
  const listener = recordSubscription({ token: "t", ...options });
  await settle();
  const stream = ScriptedStream.last.accept();
  await settle();
  return { ...listener, stream };
}

const offers = () => ScriptedSocket.all.map(({ protocols }) => protocols.join(" "));

describe("the transports", () => {
  test("without a token: synap.v1, then no subprotocol, then a stream, in one attempt", async () => {
    ScriptedSocket.areBlocked = true;
    const { statuses, subscription } = recordSubscription();
    await settle();
    expect(offers()).toEqual(["synap.v1", ""]);
    expect(ScriptedStream.all).toHaveLength(1);
    ScriptedStream.last.accept();
    await settle();
    expect(statuses()).toEqual(["connecting", "open"]);
    expect(subscription.state.transport).toBe("sse");
  });

  test("a token is never sent to a server without synap.v1", async () => {
    await streaming();
    expect(offers()).toEqual(["synap.v1 bearer.t"]);
    expect(ScriptedStream.last.url).toBe("https://rooms.example/rooms/user_1/events");
    expect(ScriptedStream.last.init.headers).toEqual({ Accept: "text/event-stream", Authorization: "Bearer t" });
  });

  test("presence requires synap.v1", async () => {
    await streaming({ token: null, presence: true });
    expect(offers()).toEqual(["synap.v1"]);
  });

  test("a server without subprotocols is supported", async () => {
    const { subscription, notifications } = recordSubscription();
    await settle();
    ScriptedSocket.last.end(1006); // a browser rejects a response without the subprotocol
    await settle();
    ScriptedSocket.last.accept("").notify("c1");
    expect(subscription.state).toEqual({ status: "open", transport: "websocket" });
    expect(notifications).toEqual(["c1"]);
    expect(ScriptedStream.all).toHaveLength(0);
  });

  test("losing an open connection does not change the transport", async () => {
    const { socket } = await connected();
    socket.end(1006);
    await settle();
    expect(ScriptedSocket.all).toHaveLength(1);
    expect(ScriptedStream.all).toHaveLength(0);
  });

  test("the response of a stream is final", async () => {
    ScriptedSocket.areBlocked = true;
    const { subscription } = recordSubscription({ token: "t" });
    await settle();
    ScriptedStream.last.refuse(403, { error: "Forbidden", details: "not this room", code: "forbidden" });
    await settle();
    const error = { message: "not this room", code: 403, retriable: false };
    expect(subscription.state).toMatchObject({ status: "closed", error });
    await pass(60_000);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test.each([400, 401, 404, 405, 413, 426])("%i is final", async (status) => {
    ScriptedSocket.areBlocked = true;
    const { subscription } = recordSubscription({ token: "t" });
    await settle();
    ScriptedStream.last.refuse(status, "<html>");
    await settle();
    expect(subscription.state.status).toBe("closed");
    expect(subscription.state.error?.message).toContain(`the server answered ${status}`);
  });

  test.each([408, 425, 429, 500, 502, 503])("%i is not", async (status) => {
    ScriptedSocket.areBlocked = true;
    const { subscription } = recordSubscription({ token: "t" });
    await settle();
    ScriptedStream.last.refuse(status, { error: "x" });
    await settle();
    expect(subscription.state).toMatchObject({ status: "reconnecting", error: { code: status, retriable: true } });
  });
});

describe("what is remembered", () => {
  test("after a WebSocket handshake without a response, a stream is tried first", async () => {
    recordSubscription({ token: "t" });
    await pass(10_000);
    const stream = ScriptedStream.last.accept();
    await settle();
    stream.end();
    await pass(1000);
    expect(ScriptedStream.all).toHaveLength(2);
    expect(ScriptedSocket.all).toHaveLength(1);
    ScriptedStream.last.refuse(503);
    await settle();
    ScriptedSocket.last.accept();
    ScriptedSocket.last.end(1006);
    await pass(2000);
    expect(ScriptedSocket.all).toHaveLength(3);
    expect(ScriptedStream.all).toHaveLength(2);
  });

  test("synap.v1 comes before no subprotocol, also after a stream", async () => {
    const { stream } = await streaming({ token: null });
    stream.end();
    await pass(1000);
    ScriptedStream.last.refuse(503);
    await settle();
    expect(offers()).toEqual(["synap.v1", "", "synap.v1", ""]);
  });

  test("is nothing when no transport works", async () => {
    const { stream } = await streaming();
    ScriptedStream.areBlocked = true;
    stream.end();
    await pass(1000);
    expect([ScriptedSocket.all.length, ScriptedStream.all.length]).toEqual([2, 2]);
    ScriptedSocket.areBlocked = false;
    await pass(2000);
    ScriptedSocket.last.accept();
    expect([ScriptedSocket.all.length, ScriptedStream.all.length]).toEqual([3, 2]);
  });

  test("a server without synap.v1 is offered it each time", async () => {
    recordSubscription();
    await settle();
    ScriptedSocket.last.end(1006);
    await settle();
    ScriptedSocket.last.accept("").end(1006);
    await pass(1000);
    expect(offers()).toEqual(["synap.v1", "", "synap.v1"]);
  });
});

describe("a stream", () => {
  const events =
    ":\n\nretry: 1000\n\n" +
    'id: c1\ndata: {"id":"1","type":"a.b","data":{"text":"é 😀 \u2028 \\n"},"cursor":"c1"}\n\n' +
    'event: synap.subscribed\nid: c1\ndata: {"room":"user_1","cursor":"c1","replayed":1,"recovered":false}\n\n' +
    ":\n\n" +
    'id:c2\ndata:{"id":"2","type":"a.b","data":{},"cursor":"c2"}\n\n';
  const bytes = new TextEncoder().encode(events);

  async function check(pieces: Uint8Array[]) {
    const texts: unknown[] = [];
    const { stream, notifications, gaps, subscription } = await streaming({
      after: "c0",
      onNotification: ({ data }) => void texts.push(data.text),
    });
    stream.bytes(...pieces);
    await settle();
    expect(notifications).toEqual(["c1", "c2"]);
    expect(texts[0]).toBe("é 😀 \u2028 \n");
    expect(gaps).toEqual(["user_1"]);
    subscription.close();
    expect(stream.isAborted).toBe(true);
  }

  test("may come in one piece", () => check([bytes]));
  test("may come byte by byte", () => check(Array.from(bytes, (byte) => Uint8Array.of(byte))));
  test("may be cut anywhere", async () => {
    for (let place = 1; place < bytes.length; place++) {
      await check([bytes.slice(0, place), bytes.slice(place)]);
      ScriptedSocket.all = [];
      ScriptedStream.all = [];
    }
  });
  test.each(["one piece", "bytes"])("may have lines that end with CRLF, as a proxy may like them: in %s", (how) => {
    const changed = new TextEncoder().encode(events.replaceAll("\n", "\r\n"));
    return check(how === "bytes" ? Array.from(changed, (byte) => Uint8Array.of(byte)) : [changed]);
  });

  test("an unknown event is skipped", async () => {
    const { stream, notifications, subscription } = await streaming();
    stream.write('data\n\nevent: x\ndata: {}\n\nevent: synap.new\n\ndata: {\n\n\n\n\nid: 7\n\nfoo: bar\ndata: []\n\n');
    stream.write('unknown: 1\nid: c1\ndata: {"type":"a","data":{},"cursor":"c1"}\n\n');
    await settle();
    expect(notifications).toEqual(["c1"]);
    expect(subscription.state.status).toBe("open");
  });

  test("an incomplete event at the end is ignored", async () => {
    const { stream, notifications } = await streaming();
    stream.write('data: {"type":"a","data":{},"cursor":"c1"}\n').end();
    await settle();
    expect(notifications).toEqual([]);
  });

  test("that ends is reopened from its last notification", async () => {
    const { stream, subscription } = await streaming();
    stream.write('data: {"type":"a","data":{},"cursor":"c1"}\n\n').end();
    await settle();
    expect(subscription.state).toMatchObject({ status: "reconnecting", delayMs: 1000 });
    await pass(1000);
    expect(ScriptedStream.last.after).toBe("c1");
  });

  test("that drains sets the delay of the reconnect", async () => {
    const { stream, subscription } = await streaming();
    stream.write('retry: 9999\n\nevent: synap.closing\nretry: 77\ndata: {"code":4012,"reconnectAfterMs":77}\n\n').end();
    await settle();
    expect(subscription.state.delayMs).toBe(77);
  });

  test("that drains before it is open sets the delay, and nothing else", async () => {
    ScriptedSocket.areBlocked = true;
    const { subscription, statuses } = recordSubscription({ token: "t" });
    await settle();
    ScriptedStream.last.drain(1234);
    await settle();
    expect(statuses()).toEqual(["connecting", "reconnecting"]);
    expect(subscription.state.delayMs).toBe(1234);
  });

  test.each(["soon", "-5", "1e9", "0x10", " ", "1.5"])("ignores a `retry` of %j, which is no number", async (retry) => {
    const { stream, subscription } = await streaming();
    stream.write(`event: synap.closing\nretry: ${retry}\ndata: {"code":4012}\n\n`).end();
    await settle();
    expect(subscription.state.delayMs).toBe(1000);
  });

  test("ignores the `retry` of any other event", async () => {
    const { stream, subscription } = await streaming();
    stream.write("retry: 9999\n\n").end();
    await settle();
    expect(subscription.state.delayMs).toBe(1000);
  });

  test("sends nothing and acknowledges nothing", async () => {
    const { stream, subscription } = await streaming();
    stream.write('data: {"type":"a","data":{},"cursor":"c1"}\n\n');
    subscription.send("hello");
    await pass(1000);
    subscription.close();
    expect(ScriptedSocket.all.flatMap(({ sent }) => sent)).toEqual([]);
  });

  test("calls nothing after its end", async () => {
    const listener = await streaming({ onNotification: () => listener.subscription.close() });
    const one = (cursor: string) => `data: {"type":"a","data":{},"cursor":"${cursor}"}\n\n`;
    listener.stream.write(one("c1") + one("c2"));
    await settle();
    expect(listener.notifications).toEqual(["c1"]);
    expect(listener.statuses()).toEqual(["connecting", "open"]);
  });

  test("does not follow a redirect, which would take the token along", async () => {
    const { stream } = await streaming();
    expect(stream.init.redirect).toBe("error");
  });

  const MIB = 1024 * 1024;
  const endless: Record<string, string[]> = {
    "an endless line": ["data: ", ...Array<string>(20).fill("x".repeat(MIB / 16))],
    "endless lines": Array<string>(20).fill("data: x\n".repeat(MIB / 128)),
    "endless comments": Array<string>(20).fill(":x\n".repeat(MIB / 32)),
    "a huge line in one piece": [`data: ${"x".repeat(2 * MIB)}\n\n`],
  };
  test.each(Object.keys(endless))("is left if an event has %s", async (kind) => {
    const { stream, subscription, notifications } = await streaming();
    for (const piece of endless[kind] as string[]) stream.write(piece);
    await settle();
    expect(subscription.state).toMatchObject({
      status: "reconnecting",
      error: { message: "the server sent a message of more than 1 MiB" },
    });
    expect(stream.isAborted).toBe(true);
    expect(notifications).toEqual([]);
  });

  test("may have many events, and one of nearly 1 MiB", async () => {
    const { stream, subscription, notifications } = await streaming();
    for (let n = 0; n < 10; n++) stream.write(":\n\n".repeat(50_000));
    stream.write(`data: {"type":"a","data":{"x":"${"x".repeat(MIB - 100)}"},"cursor":"c1"}\n\n`);
    await settle();
    expect(subscription.state.status).toBe("open");
    expect(notifications).toEqual(["c1"]);
  });
});

test("a WebSocket message of more than 1 MiB is not parsed, and closes the connection", async () => {
  const { socket, subscription, notifications } = await connected();
  socket.text(`{"type":"a","cursor":"c9","data":{"x":"${"x".repeat(1024 * 1024)}"}}`);
  await settle();
  expect(notifications).toEqual([]);
  expect(subscription.state).toMatchObject({
    status: "reconnecting",
    error: { message: "the server sent a message of more than 1 MiB" },
  });
});

describe("a transport", () => {
  const target = { base: "https://rooms.example", room: "user_1", query: {} };
  const recorder = (events: string[], onOpen = () => {}): TransportCallbacks => ({
    onOpen: () => {
      events.push("open");
      onOpen();
    },
    onMessage: () => events.push("message"),
    onPong: () => undefined,
    onEnd: ({ reason }) => events.push(reason),
  });

  test("ends once, also after both an error and a close", async () => {
    const events: string[] = [];
    webSocket(target, recorder(events), "synap.v1");
    const socket = ScriptedSocket.last;
    socket.onerror?.();
    socket.end(1012);
    await pass(1000);
    expect(events).toEqual(["the server is restarting"]);
  });

  test("that was closed calls nothing, also for an earlier error", async () => {
    const events: string[] = [];
    const transport = webSocket(target, recorder(events), "synap.v1");
    ScriptedSocket.last.onerror?.();
    transport.close();
    await pass(1000);
    expect(events).toEqual([]);
  });

  test("that is closed in onOpen does not deliver the message that opened it", async () => {
    const events: string[] = [];
    const transport = eventStream(target, recorder(events, () => transport.close()));
    ScriptedStream.last.accept();
    await settle();
    expect(events).toEqual(["open"]);
  });
});
