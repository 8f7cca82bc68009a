/** Platforms other than browsers: the classes of React Native, and non-conforming WebSockets. */
import { describe, expect, test, vi } from "vitest";
import { connected, recordSubscription, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

/** URL and URLSearchParams as in React Native up to 0.78. */
function withClassesOfReactNative(): void {
  class URLSearchParams {
    constructor(private readonly given: object) {}
    toString() {
      return Object.entries(this.given).map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`).join("&");
    }
    get() {
      throw new Error("URLSearchParams.get is not implemented");
    }
  }
  class URL {
    constructor(private readonly given: string) {}
    toString = () => this.given;
    get host(): string {
      throw new Error("URL.host is not implemented");
    }
    get searchParams(): URLSearchParams {
      return new URLSearchParams({});
    }
  }
  vi.stubGlobal("URLSearchParams", URLSearchParams);
  vi.stubGlobal("URL", URL);
  for (const name of ["ReadableStream", "TextDecoderStream", "BroadcastChannel", "DOMException", "Event", "EventTarget"])
    vi.stubGlobal(name, undefined);
}

describe("React Native", () => {
  test("receives cursor, device and presence", async () => {
    withClassesOfReactNative();
    const { socket } = await connected({ after: "c0", device: "a@b|c", presence: true, token: "t" });
    const [path, query] = socket.url.split("?");
    expect(path).toBe("wss://rooms.example/rooms/user_1/subscribe");
    expect(query).toBe("after=c0&device=a%40b%7Cc&presence=1");
    socket.notify("c1").end(1006);
    await pass(1000);
    expect(ScriptedSocket.last.url).toContain("after=c0&");
  });

  test("does not use event streams, which would never end", async () => {
    withClassesOfReactNative();
    ScriptedSocket.areBlocked = true;
    const { states } = recordSubscription({ token: "t" });
    await pass(60_000);
    expect(ScriptedStream.all).toEqual([]);
    expect(ScriptedSocket.all).toHaveLength(6);
    expect(states.at(-1)).toMatchObject({ status: "closed", error: { message: "cannot reach the server" } });
  });

  test("gives no close code if the connection could not be opened", async () => {
    const { socket, subscription } = await connected({ token: "t" });
    socket.readyState = 3;
    socket.onerror?.();
    socket.onclose?.({ reason: "Software caused connection abort" } as never);
    expect(subscription.state).toMatchObject({
      status: "reconnecting", error: { code: 1006, message: "Software caused connection abort", retriable: true },
    });
    await pass(10_000);
    expect(ScriptedSocket.all).toHaveLength(2);
  });
});

describe("a WebSocket that", () => {
  /** Its deviation. */
  const polyfill = (members: object) => {
    vi.stubGlobal("WebSocket", class extends ScriptedSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols);
        Object.assign(this, members);
      }
    });
  };
  const boom = () => {
    throw new Error("boom");
  };

  test.each([new Error("boom"), new TypeError("boom"), "boom", undefined])("throws when it is made leaves a stream: %s", async (error) => {
    vi.stubGlobal("WebSocket", function () {
      throw error;
    });
    const { subscription } = recordSubscription({ token: "t" });
    await settle();
    ScriptedStream.last.accept();
    await settle();
    expect(subscription.state).toEqual({ status: "open", transport: "sse" });
    subscription.close();
  });

  test("throws in its constructor is retried if there is no event stream", async () => {
    vi.stubGlobal("WebSocket", boom);
    ScriptedStream.areBlocked = true;
    const { subscription } = recordSubscription({ token: "t" });
    await settle();
    expect(subscription.state).toMatchObject({ status: "reconnecting", error: { retriable: true } });
    vi.stubGlobal("WebSocket", ScriptedSocket);
    await pass(1000);
    ScriptedSocket.last.accept();
    expect(subscription.state.status).toBe("open");
  });

  test("throws in send() has ended", async () => {
    polyfill({ send: boom });
    const { subscription, socket, notifications } = await connected();
    socket.notify("c1");
    await pass(500); // the acknowledgement
    expect(subscription.state).toMatchObject({ status: "reconnecting" });
    await pass(1000);
    expect(ScriptedSocket.last.after).toBe("c1");
    expect(notifications).toEqual(["c1"]);
    expect(() => subscription.send("x")).not.toThrow();
    subscription.close();
  });

  test("throws in close() is dropped", async () => {
    polyfill({ close: boom });
    const { subscription, statuses } = await connected();
    expect(() => subscription.reconnect()).not.toThrow();
    await settle();
    ScriptedSocket.last.accept();
    expect(statuses()).toEqual(["connecting", "open", "connecting", "open"]);
    expect(() => subscription.close()).not.toThrow();
  });

  test("emits `error` and never `close` has ended", async () => {
    const { subscription, socket } = await connected();
    socket.onerror?.();
    await pass(1000);
    expect(subscription.state).toMatchObject({ status: "reconnecting", attempt: 1 });
    expect(socket.isClosed).toBe(true);
    await pass(1000);
    ScriptedSocket.last.accept();
    expect(subscription.state.status).toBe("open");
  });

  test("emits `error` before it is open leaves the other transports", async () => {
    const { subscription } = recordSubscription({ token: "t" });
    await settle();
    ScriptedSocket.last.onerror?.();
    await pass(1000);
    ScriptedStream.last.accept();
    await settle();
    expect(subscription.state.transport).toBe("sse");
  });

  test("emits `error` and then `close` has ended once", async () => {
    const { subscription, socket } = await connected();
    socket.onerror?.();
    socket.end(4401, "token expired");
    socket.onclose?.({ code: 1006, reason: "" });
    await pass(900);
    expect(subscription.state).toMatchObject({ status: "reconnecting", attempt: 1, error: { code: 4401 } });
  });

  test("sends messages after it was dropped is ignored, and its handlers stay callable", async () => {
    const { subscription, socket, notifications } = await connected();
    subscription.close();
    for (const name of ["onopen", "onmessage", "onerror", "onclose"] as const) (socket[name] as (event: object) => void)({ code: 1000 });
    socket.text(JSON.stringify({ type: "a", data: {} }));
    expect(notifications).toEqual([]);
  });

  test.each([null, undefined, new ArrayBuffer(8), {}, 5])("returns a value that is not a string is rejected: %s", async (data) => {
    const { subscription, socket, notifications } = await connected();
    socket.text(data).notify("c1");
    expect([subscription.state.status, notifications]).toEqual(["open", ["c1"]]);
  });
});
