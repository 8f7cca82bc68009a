/** The hooks, with each supported version of React. */
import { act, cleanup, render, renderHook } from "@testing-library/react";
import * as React from "react";
import { StrictMode, useLayoutEffect, version, type ReactNode } from "react";
import { renderToString } from "react-dom/server";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { useJob, useSynapRealtime, type RealtimeOptions } from "../src/react.js";
import { notification, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

const complaints: unknown[][] = [];
beforeEach(() => {
  complaints.length = 0;
  vi.spyOn(console, "error").mockImplementation((...said) => void complaints.push(said));
});
afterEach(() => {
  cleanup();
  expect(complaints).toEqual([]);
});

const URL_ = "https://rooms.example";
const acting = (what: () => unknown) => act(async () => void (await what()));

/** Mount the hook, and record the result of every render. */
async function mount(options: Partial<RealtimeOptions> = {}, wrapper?: typeof StrictMode) {
  const initialProps: RealtimeOptions = { userId: "1", url: URL_, ...options };
  const hook = renderHook((props: RealtimeOptions) => useSynapRealtime(props), {
    initialProps,
    ...(wrapper && { wrapper: wrapper as never }),
  });
  await acting(settle);
  return { ...hook, now: () => hook.result.current, change: (props: Partial<RealtimeOptions>) => hook.rerender({ ...initialProps, ...props }) };
}

/** Mount the hook, and accept its connection. */
async function mountConnected(options: Partial<RealtimeOptions> = {}) {
  const hook = await mount(options);
  await acting(() => ScriptedSocket.last.accept());
  return { ...hook, socket: ScriptedSocket.last };
}

describe("useSynapRealtime", () => {
  test("subscribes to the user's room, and shows its messages", async () => {
    const onMessage = vi.fn();
    const onConnect = vi.fn();
    const { now, socket } = await mount({ onMessage, onConnect }).then(async (hook) => {
      expect(hook.now()).toMatchObject({ status: "connecting", isConnected: false, lastMessage: null, messages: [] });
      await acting(() => ScriptedSocket.last.accept());
      return { ...hook, socket: ScriptedSocket.last };
    });
    expect(socket.url).toContain("/rooms/user_1/subscribe");
    expect(now()).toMatchObject({ status: "open", isConnected: true, error: null });
    expect(onConnect).toHaveBeenCalledOnce();
    await acting(() => socket.notify("c1", "c2"));
    expect(now().lastMessage?.id).toBe("c2");
    expect(now().messages.map(({ id }) => id)).toEqual(["c1", "c2"]);
    expect(onMessage.mock.calls.map(([message]) => (message as { id: string }).id)).toEqual(["c1", "c2"]);
  });

  test("subscribes to the request's room if there is one", async () => {
    await mount({ requestId: "r7" });
    expect(ScriptedSocket.last.url).toContain("/rooms/request_r7/subscribe");
  });

  test.each(["url", "realtimeUrl"] as const)("takes the server's address as `%s`", async (name) => {
    await mount({ url: undefined, [name]: "https://named.example" });
    expect(ScriptedSocket.last.url).toContain("wss://named.example/");
  });

  test("keeps at most maxMessages messages", async () => {
    const { now, socket } = await mountConnected({ maxMessages: 3 });
    await acting(() => socket.notify("c1", "c2", "c3", "c4", "c5"));
    expect(now().messages.map(({ id }) => id)).toEqual(["c3", "c4", "c5"]);
    const hundred = await mountConnected();
    await acting(() => hundred.socket.notify(...Array.from({ length: 150 }, (_, number) => `c${number}`)));
    expect(hundred.now().messages).toHaveLength(100);
    expect(hundred.now().lastMessage?.id).toBe("c149");
  });

  test.each([0, -1])("and none at all with %i, but the last one", async (keep) => {
    const onMessage = vi.fn();
    const { now, socket } = await mountConnected({ maxMessages: keep, onMessage });
    await acting(() => socket.notify("c1", "c2"));
    expect(now().messages).toEqual([]);
    expect(now().lastMessage?.id).toBe("c2");
    expect(onMessage).toHaveBeenCalledTimes(2);
  });

  test("opens one connection in strict mode, though it is mounted twice", async () => {
    const { now, unmount } = await mount({}, StrictMode);
    expect(ScriptedSocket.all).toHaveLength(1);
    await acting(() => ScriptedSocket.last.accept());
    expect(now().isConnected).toBe(true);
    unmount();
    expect(ScriptedSocket.last.isClosed).toBe(true);
  });

  test("a new callback or token is used without a reconnect", async () => {
    const calls: string[] = [];
    const named = (name: string): Partial<RealtimeOptions> => ({
      onMessage: () => calls.push(`${name} message`),
      onDisconnect: () => calls.push(`${name} disconnect`),
      onError: () => calls.push(`${name} error`),
      onGap: () => calls.push(`${name} gap`),
      onPresence: () => calls.push(`${name} presence`),
      onConnect: () => calls.push(`${name} connect`),
      token: () => `token-${name}`,
      maxMessages: 5,
      maxReconnects: 3,
    });
    const { socket, change } = await mountConnected({ ...named("old"), after: "c0" });
    change({ ...named("new"), after: "c0" });
    await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(1);
    expect(socket.isClosed).toBe(false);
    await acting(() => {
      socket.notify("c1").subscribed("c1", false).control("presence", { event: "state", users: [] }).end(1006);
    });
    await acting(() => pass(1000));
    await acting(() => ScriptedSocket.last.accept());
    expect(ScriptedSocket.last.token).toBe("token-new");
    expect(calls).toEqual([
      "old connect", "new message", "new gap", "new presence", "new error", "new disconnect", "new connect",
    ]);
  });

  test("another user: the old room is closed first, and none of its messages is shown in any frame", async () => {
    const frames: string[] = [];
    const closedAtDial: boolean[] = [];
    function Page({ userId }: { userId: string }) {
      const { messages, lastMessage, status } = useSynapRealtime({ userId, url: URL_ });
      useLayoutEffect(() => {
        frames.push(`${userId} ${messages.map(({ id }) => id).join()} ${lastMessage?.id} ${status}`);
      });
      return <p>{lastMessage?.id}</p>;
    }
    const { rerender, container } = render(<Page userId="1" />);
    await acting(settle);
    const old = ScriptedSocket.last.accept();
    await acting(() => old.notify("secret"));
    expect(container.textContent).toBe("secret");
    class Watched extends ScriptedSocket {
      constructor(url: string, protocols: string[]) {
        closedAtDial.push(old.isClosed);
        super(url, protocols);
      }
    }
    vi.stubGlobal("WebSocket", Watched);
    rerender(<Page userId="2" />);
    expect(container.textContent).toBe("");
    expect(old.isClosed).toBe(true);
    await acting(settle);
    expect(closedAtDial).toEqual([true]);
    expect(ScriptedSocket.last.url).toContain("user_2");
    await acting(() => ScriptedSocket.last.accept().notify("own"));
    expect(container.textContent).toBe("own");
    expect(frames.filter((frame) => frame.startsWith("2") && frame.includes("secret"))).toEqual([]);
    expect(frames.find((frame) => frame.startsWith("2"))).toMatch(/^2 {2}undefined (closed|connecting)$/);
  });

  test("another request or server is another room, too", async () => {
    const { change, now, socket } = await mountConnected();
    await acting(() => socket.notify("c1"));
    change({ requestId: "r" });
    expect(now().messages).toEqual([]);
    await acting(settle);
    change({ url: "https://other.example" });
    await acting(settle);
    expect(ScriptedSocket.all.map(({ url }) => url)).toEqual([
      "wss://rooms.example/rooms/user_1/subscribe",
      "wss://rooms.example/rooms/request_r/subscribe",
      "wss://other.example/rooms/user_1/subscribe",
    ]);
    expect(ScriptedSocket.all.map(({ isClosed }) => isClosed)).toEqual([true, true, false]);
  });

  test("waits for `connect` without `autoConnect`; `disconnect` ends the connection, and `connect` opens a new one", async () => {
    const onDisconnect = vi.fn();
    const { now } = await mount({ autoConnect: false, onDisconnect });
    expect(ScriptedSocket.all).toHaveLength(0);
    expect(now().status).toBe("closed");
    await acting(() => now().connect());
    expect(now().status).toBe("connecting");
    await acting(() => ScriptedSocket.last.accept().notify("c1"));
    now().connect(); // it is connected
    await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(1);
    await acting(() => now().disconnect());
    expect(now()).toMatchObject({ status: "closed", isConnected: false });
    expect(now().lastMessage?.id).toBe("c1");
    expect(onDisconnect).toHaveBeenCalledOnce();
    expect(ScriptedSocket.last.isClosed).toBe(true);
    await acting(() => now().connect());
    await acting(() => ScriptedSocket.last.accept());
    expect(now().isConnected).toBe(true);
  });

  test("what `connect` has opened stays when an option changes, and is closed when the component is unmounted", async () => {
    const { now, change, unmount } = await mount({ autoConnect: false });
    await acting(() => now().connect());
    await acting(() => ScriptedSocket.last.accept());
    change({ autoConnect: false, device: "phone" });
    await acting(settle);
    expect(now().isConnected).toBe(true);
    unmount();
    expect([ScriptedSocket.all.length, ScriptedSocket.last.isClosed]).toEqual([1, true]);
  });

  test("`connect` connects also after the last attempt has failed", async () => {
    const { now, socket } = await mountConnected({ maxReconnects: 0 });
    await acting(() => socket.end(1006));
    expect(now().status).toBe("closed");
    await acting(() => now().connect());
    await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(2);
  });

  test("`sendMessage` sends to the server; without a connection the message is lost", async () => {
    const { now, socket } = await mountConnected();
    now().sendMessage("hello");
    expect(socket.sent).toEqual(["hello"]);
    await acting(() => now().disconnect());
    now().sendMessage("lost");
    expect(socket.sent).toEqual(["hello"]);
  });

  test("the returned functions are stable", async () => {
    const { now, socket } = await mountConnected();
    const { connect, disconnect, sendMessage } = now();
    await acting(() => socket.notify("c1"));
    expect(now()).toMatchObject({ connect, disconnect, sendMessage });
  });

  test("`error` is an Event with the cause, until the next connection is open", async () => {
    const onError = vi.fn();
    const { now, socket } = await mountConnected({ onError });
    await acting(() => socket.end(4401, "token expired"));
    const { error } = now();
    expect(error).toBeInstanceOf(Event);
    expect(error).toMatchObject({ type: "error", message: "token expired", code: 4401, retriable: true });
    expect(onError).toHaveBeenCalledExactlyOnceWith(error);
    await acting(() => pass(1000));
    expect(now()).toMatchObject({ status: "connecting", error });
    await acting(() => ScriptedSocket.last.accept());
    expect(now().error).toBe(null);
  });

  test("unmounting closes the connection and calls only `onDisconnect`", async () => {
    const onDisconnect = vi.fn();
    const { unmount, socket } = await mountConnected({ onDisconnect });
    unmount();
    expect(socket.isClosed).toBe(true);
    expect(onDisconnect).toHaveBeenCalledOnce();
    await pass(60_000);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test("an `onMessage` that throws breaks nothing", async () => {
    const onMessage = vi.fn(() => {
      throw new Error("of the application");
    });
    const { now, socket } = await mountConnected({ onMessage });
    await acting(() => socket.notify("c1", "c2"));
    expect(now().messages).toHaveLength(2);
    expect(() => vi.advanceTimersByTime(1)).toThrow("of the application");
  });

  test("with `shared`, `onDisconnect` is called once, and strict mode opens one connection", async () => {
    const onDisconnect = vi.fn();
    const { now, unmount } = await mount({ shared: true, userId: "shared", onDisconnect }, StrictMode);
    for (let round = 0; round < 50 && !ScriptedSocket.all.length; round++) await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(1);
    await acting(() => ScriptedSocket.last.accept());
    expect(now().isConnected).toBe(true);
    unmount();
    expect(onDisconnect).toHaveBeenCalledOnce();
  });

  /** Record the ids that were shown, and those passed to `onMessage`. */
  const recordMessages = () => {
    const received: (string | undefined)[] = [];
    return { received, onMessage: ({ id }: { id?: string }) => void received.push(id) };
  };

  test("shows each message once over `disconnect` and `connect`, in a request's room, too", async () => {
    const { received, onMessage } = recordMessages();
    const { now, socket } = await mountConnected({ requestId: "r", onMessage });
    await acting(() => socket.notify("c1", "c2").subscribed("c2"));
    await acting(() => now().disconnect());
    await acting(() => now().connect());
    await acting(settle);
    expect(ScriptedSocket.last.after).toBe("c2");
    await acting(() => ScriptedSocket.last.accept().notify("c1", "c2", "c3"));
    expect(now().messages.map(({ id }) => id)).toEqual(["c1", "c2", "c3"]);
    expect(received).toEqual(["c1", "c2", "c3"]);
  });

  test("an interrupted replay is requested again from its start, and shown once", async () => {
    const { received, onMessage } = recordMessages();
    const onGap = vi.fn();
    const { now, socket } = await mountConnected({ requestId: "r", after: "c0", onMessage, onGap });
    await acting(() => socket.notify("c7"));
    await acting(() => now().disconnect());
    await acting(() => now().connect());
    await acting(settle);
    expect(ScriptedSocket.last.after).toBe("c0");
    await acting(() => ScriptedSocket.last.accept().notify("c7", "c8").subscribed("c8", false));
    expect(received).toEqual(["c7", "c8"]);
    expect(onGap).toHaveBeenCalledOnce();
  });

  test.each([
    { maxReconnects: 3 }, { device: "phone" }, { presence: true }, { shared: true }, { after: "earliest" }, { autoConnect: undefined },
  ] as Partial<RealtimeOptions>[])("shows each message once when an option changes: %j", async (change) => {
    const { received, onMessage } = recordMessages();
    const hook = await mountConnected({ requestId: `r${JSON.stringify(change).length}`, onMessage });
    await acting(() => hook.socket.notify("c1", "c2").subscribed("c2"));
    hook.change({ requestId: `r${JSON.stringify(change).length}`, onMessage, ...change });
    for (let round = 0; round < 20; round++) await acting(settle);
    if (ScriptedSocket.last !== hook.socket) {
      expect(ScriptedSocket.last.after).toBe(change.after ?? "c2");
      await acting(() => ScriptedSocket.last.accept().notify("c1", "c2").subscribed("c2"));
    }
    await acting(() => ScriptedSocket.last.notify("c3"));
    expect(hook.now().messages.map(({ id }) => id)).toEqual(["c1", "c2", "c3"]);
    expect(received).toEqual(["c1", "c2", "c3"]);
  });

  test.runIf("Activity" in React)("shows each message once when it is hidden and shown again", async () => {
    const { received, onMessage } = recordMessages();
    const { Activity } = React as unknown as { Activity: (props: { mode: string; children: ReactNode }) => ReactNode };
    function Page() {
      const { messages } = useSynapRealtime({ userId: "1", requestId: "r", url: URL_, onMessage });
      return <p>{messages.map(({ id }) => id).join()}</p>;
    }
    const { container, rerender } = render(<Activity mode="visible"><Page /></Activity>);
    await acting(settle);
    await acting(() => ScriptedSocket.last.accept().notify("c1").subscribed("c1"));
    rerender(<Activity mode="hidden"><Page /></Activity>);
    await acting(settle);
    expect(ScriptedSocket.last.isClosed).toBe(true);
    rerender(<Activity mode="visible"><Page /></Activity>);
    await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(2);
    await acting(() => ScriptedSocket.last.accept().notify("c1", "c2"));
    expect(container.textContent).toBe("c1,c2");
    expect(received).toEqual(["c1", "c2"]);
  });

  test.each([
    ["userId", { userId: undefined }], ["userId", { userId: "undefined" }], ["userId", { userId: "" }],
    ["userId", { userId: NaN }], ["userId", { userId: 5 }], ["userId", { userId: "a b" }],
    ["requestId", { requestId: "" }], ["requestId", { requestId: NaN }], ["requestId", { requestId: "undefined" }],
    ["url", { url: "/realtime" }], ["url", { url: "" }], ["realtimeUrl", { url: undefined, realtimeUrl: "/realtime" }],
    ["maxMessages", { maxMessages: NaN }], ["maxMessages", { maxMessages: "5" }], ["shared", { shared: "yes" }], ["autoConnect", { autoConnect: 0 }],
    ["maxReconnects", { maxReconnects: NaN }], ["onMessage", { onMessage: "f" }], ["token", { token: "" }],
  ] as [string, object][])("throws for an invalid %s: %j", (name, wrong) => {
    const props = { userId: "1", url: URL_, ...wrong } as RealtimeOptions;
    expect(() => renderHook(() => useSynapRealtime(props))).toThrow(new RegExp(`^${name}: expected `));
    complaints.length = 0; // React reports it, too
    expect(ScriptedSocket.all).toEqual([]);
  });

  test("a new fixed token is tried after the old one was rejected", async () => {
    const { now, socket, change } = await mountConnected({ token: "old" });
    await acting(() => socket.end(4501, "token expired"));
    expect(now().status).toBe("closed");
    change({ token: "old" });
    await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(1);
    change({ token: "new" });
    await acting(settle);
    expect(ScriptedSocket.last.token).toBe("new");
  });

  test("a fixed token is not sent again when the server warns of its expiry", async () => {
    const { socket } = await mountConnected({ token: "fixed" });
    await acting(() => socket.control("token_expiring", { expiresAt: new Date(Date.now() + 20_000).toISOString() }));
    await acting(settle);
    expect(socket.actions).toEqual([]);
  });

  test("renders on a server without connecting", async () => {
    function Page() {
      const { status, lastMessage } = useSynapRealtime({ userId: "1" });
      return <p>{`${status} ${lastMessage}`}</p>;
    }
    expect(renderToString(<Page />)).toBe("<p>closed null</p>");
    await settle();
    expect(ScriptedSocket.all).toHaveLength(0);
  });
});

describe("useJob", () => {
  const started = notification("c1", { type: "a.started", data: { runId: "r", attempt: 1, stallAfterS: 60 } });
  const completed = notification("c9", { type: "a.completed", status: "success", data: { pages: 3 } });
  const delta = (offset: number, text: string) =>
    notification(`d${offset}`, { type: "a.delta", data: { runId: "r", attempt: 1, index: 1, offset, delta: text } });

  async function follow(requestId: string | null | undefined) {
    const hook = renderHook((id: string | null | undefined) => useJob(id, { url: URL_ }), { initialProps: requestId });
    await acting(settle);
    if (requestId) await acting(() => ScriptedSocket.last.accept());
    return { ...hook, now: () => hook.result.current, socket: ScriptedSocket.all.at(-1) as ScriptedSocket };
  }

  test.each([null, undefined, ""])("without a request it is idle: %j", async (requestId) => {
    const { now } = await follow(requestId);
    expect(now()).toMatchObject({ status: "idle", attempt: 1, text: "", connection: "closed", connectionError: null });
    expect(ScriptedSocket.all).toHaveLength(0);
  });

  test("replays the request's room, and follows the job until it is finished", async () => {
    const { now, socket } = await follow("r1");
    expect(socket.url).toBe("wss://rooms.example/rooms/request_r1/subscribe");
    await acting(() => socket.json(started));
    expect(now().status).toBe("pending");
    await acting(() => socket.json(delta(0, "Hel")).json(delta(3, "lo")));
    expect(now().text).toBe("Hello");
    await acting(() => socket.json(completed));
    expect(now()).toMatchObject({ status: "success", result: { pages: 3 }, text: "Hello" });
    expect(socket.isClosed).toBe(true);
  });

  test("a job that finished earlier has the same state", async () => {
    const { now, socket } = await follow("r1");
    await acting(() => socket.json(started).json(delta(0, "Hi")).json(completed).subscribed("c9"));
    expect(now()).toMatchObject({ status: "success", text: "Hi", result: { pages: 3 } });
  });

  test("a job that finishes while the connection is lost has the same state, from the last position", async () => {
    const { now, socket } = await follow("r1");
    await acting(() => socket.json(started).subscribed("c1").json(delta(0, "Hi")).end(1006));
    expect(now().status).toBe("pending");
    await acting(() => pass(1000));
    expect(ScriptedSocket.last.after).toBe("d0");
    await acting(() => ScriptedSocket.last.accept().json(delta(0, "Hi")).json(delta(2, "!")).json(completed));
    expect(now()).toMatchObject({ status: "success", text: "Hi!" });
  });

  test("is stalled after stallAfterS without notifications, until the next one", async () => {
    const { now, socket } = await follow("r1");
    const short = notification("c1", { type: "a.progress", data: { runId: "r", attempt: 1, stallAfterS: 5 } });
    await acting(() => socket.json(short));
    await acting(() => pass(4999));
    expect(now().status).toBe("pending");
    await acting(() => pass(1));
    expect(now().status).toBe("stalled");
    await acting(() => socket.json({ ...short, id: "c2" }));
    expect(now().status).toBe("pending");
    const wait = notification("c3", { type: "a.progress", data: { runId: "r", attempt: 1 } });
    await acting(() => socket.json(wait));
    await acting(() => pass(20_000));
    expect(now().status).toBe("pending"); // a step without stallAfterS
  });

  test("retries without limit, except after a final error", async () => {
    const { now, socket } = await follow("r1");
    ScriptedSocket.areBlocked = ScriptedStream.areBlocked = true;
    await acting(() => socket.end(1006));
    await acting(() => pass(120_000));
    expect(now().status).toBe("idle");
    ScriptedSocket.areBlocked = false;
    await acting(() => pass(16_000));
    await acting(() => ScriptedSocket.last.accept().end(4503, "not this room"));
    expect(now()).toMatchObject({
      status: "disconnected",
      connection: "closed",
      connectionError: { message: "not this room", code: 4503, retriable: false },
    });
    await acting(() => now().reconnect());
    await acting(() => ScriptedSocket.last.accept().json(completed));
    expect(now()).toMatchObject({ status: "success", connection: "closed", connectionError: null });
  });

  test("connection errors do not change the state of the job", async () => {
    const { now, socket } = await follow("r1");
    const short = notification("c1", { type: "a.progress", data: { runId: "r", attempt: 1, progress: 0.5, stallAfterS: 5 } });
    await acting(() => socket.json(short).subscribed("c1"));
    for (const [code, reason] of [[4401, "token expired"], [1006, ""], [4012, ""]] as const) {
      await acting(() => ScriptedSocket.last.end(code, reason));
      expect(now()).toMatchObject({ status: "pending", progress: 0.5, connection: "reconnecting", connectionError: { code } });
      expect(now().error).toBe(undefined);
      ScriptedSocket.areBlocked = ScriptedStream.areBlocked = true;
      await acting(() => pass(60_000)); // the connection is lost, so the job does not stall
      expect(now().status).toBe("pending");
      ScriptedSocket.areBlocked = ScriptedStream.areBlocked = false;
      await acting(() => now().reconnect());
      await acting(() => ScriptedSocket.last.accept().subscribed("c1"));
      expect(now()).toMatchObject({ status: "pending", connection: "open", connectionError: null });
    }
    await acting(() => pass(5_000));
    expect(now().status).toBe("stalled");
  });

  test("a job of hours outlives its tokens", async () => {
    let count = 0;
    const hook = renderHook(() => useJob("r1", { url: URL_, token: async () => `t${++count}` }));
    await acting(settle);
    await acting(() => ScriptedSocket.last.accept().json(started).subscribed("c1"));
    for (let life = 1; life <= 60; life++) {
      await acting(() => ScriptedSocket.last.control("token_expiring", { expiresAt: new Date(Date.now() + 30_000).toISOString() }));
      for (let part = 0; part < 3; part++) {
        await acting(() => pass(9_000));
        ScriptedSocket.last.text("pong");
      }
      await acting(() => ScriptedSocket.last.json(notification(`p${life}`, { type: "a.progress", data: { runId: "r", attempt: 1, progress: life / 60 } })));
    }
    expect([count, ScriptedSocket.all.length]).toEqual([62, 1]); // one for the snapshot
    await acting(() => ScriptedSocket.last.json(completed));
    expect(hook.result.current).toMatchObject({ status: "success", progress: 1 });
  });

  test("a text without its beginning is empty until the result contains it", async () => {
    const { now, socket } = await follow("r1");
    await acting(() => socket.json(delta(7, "lo")).json(delta(8, "!")));
    expect(now()).toMatchObject({ status: "pending", text: "", isTextComplete: false });
    await acting(() => socket.json(notification("c9", { type: "a.completed", status: "success", data: { response: "Hello!" } })));
    expect(now()).toMatchObject({ status: "success", text: "Hello!", isTextComplete: true });
  });

  test("a gap may have lost a part of the text", async () => {
    const { now, socket } = await follow("r1");
    await acting(() => socket.json(started).json(delta(0, "Hel")).subscribed("d0").end(1006));
    await acting(() => pass(1000));
    await acting(() => ScriptedSocket.last.accept().subscribed("c8", false));
    expect(now()).toMatchObject({ text: "Hel", isTextComplete: false });
    await acting(() => ScriptedSocket.last.json(delta(5, "!")));
    expect(now()).toMatchObject({ text: "Hel", isTextComplete: false });
  });

  test.runIf("Activity" in React)("stays as it is when it is hidden, and a job that is over is asked for no more", async () => {
    const { Activity } = React as unknown as { Activity: (props: { mode: string; children: ReactNode }) => ReactNode };
    function Page() {
      const { status, text } = useJob("r1", { url: URL_ });
      return <p>{`${status} ${text}`}</p>;
    }
    const shown = (mode: string) => <Activity mode={mode}><Page /></Activity>;
    const { container, rerender } = render(shown("visible"));
    await acting(settle);
    await acting(() => ScriptedSocket.last.accept().json(started).json(delta(0, "Hi")).subscribed("d0"));
    rerender(shown("hidden"));
    rerender(shown("visible"));
    await acting(settle);
    expect(ScriptedSocket.last.after).toBe("d0");
    await acting(() => ScriptedSocket.last.accept().json(delta(0, "Hi")).json(delta(2, "!")).json(completed));
    expect(container.textContent).toBe("success Hi!");
    rerender(shown("hidden"));
    rerender(shown("visible"));
    await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(2);
    expect(container.textContent).toBe("success Hi!");
  });

  test.each([NaN, 5, "undefined", "a b", {}, true])("throws for an invalid requestId: %j", (requestId) => {
    expect(() => renderHook(() => useJob(requestId as string, { url: URL_ }))).toThrow(/^requestId: expected /);
    complaints.length = 0;
  });

  test("another request is another job, in every frame", async () => {
    const { now, socket, rerender } = await follow("r1");
    await acting(() => socket.json(completed));
    rerender("r2");
    expect(now().status).toBe("idle");
    await acting(settle);
    expect(ScriptedSocket.last.url).toContain("request_r2");
    rerender(null);
    expect(ScriptedSocket.last.isClosed).toBe(true);
  });

  test("opens one connection in strict mode, and closes it", async () => {
    const hook = renderHook(() => useJob("r1", { url: URL_ }), { wrapper: StrictMode });
    await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(1);
    await acting(() => ScriptedSocket.last.accept().json(started));
    hook.unmount();
    expect(vi.getTimerCount()).toBe(0);
    expect(ScriptedSocket.all).toHaveLength(1);
    expect(ScriptedSocket.last.isClosed).toBe(true);
  });

  test("a new token function is used for the next connection, without a reconnect", async () => {
    const hook = renderHook((token: string) => useJob("r1", { url: URL_, token: () => token }), { initialProps: "a" });
    await acting(settle);
    await acting(() => ScriptedSocket.last.accept());
    hook.rerender("b");
    await acting(settle);
    expect(ScriptedSocket.all).toHaveLength(1);
    await acting(() => ScriptedSocket.last.end(4401));
    await acting(() => pass(1000));
    expect(ScriptedSocket.last.token).toBe("b");
  });

  test("renders on a server", () => {
    function Page() {
      return <p>{useJob("r1").status}</p>;
    }
    expect(renderToString(<Page />)).toBe("<p>idle</p>");
  });
});

test("the version of React is the project's", ({ task }) => {
  expect(`react${version.split(".")[0]}`).toBe(task.file.projectName);
});
