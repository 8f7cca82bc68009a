/** The cursor across reloads. */
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { CursorStorage } from "../src/options.js";
import { connected, recordSubscription, pass, ScriptedSocket, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

const KEY = "synap:https://rooms.example:user_1";

class Storage implements CursorStorage {
  readonly kept: Record<string, string> = {};
  writes = 0;
  getItem(key: string): string | null {
    return this.kept[key] ?? null;
  }
  setItem(key: string, value: string): void {
    this.writes++;
    this.kept[key] = value;
  }
}

const rejections: unknown[] = [];
const reject = (reason: unknown) => void rejections.push(reason);
declare const process: {
  on(name: "unhandledRejection", listener: (reason: unknown) => void): void;
  off(name: "unhandledRejection", listener: (reason: unknown) => void): void;
};
beforeEach(() => {
  rejections.length = 0;
  process.on("unhandledRejection", reject);
});
afterEach(() => {
  process.off("unhandledRejection", reject);
  expect(rejections).toEqual([]);
});

test("is kept in localStorage, and the next page begins there", async () => {
  const storage = new Storage();
  vi.stubGlobal("localStorage", storage);
  const { socket } = await connected({ persist: true });
  expect(socket.after).toBe(null);
  socket.notify("c1");
  await pass(1000);
  expect(storage.kept).toEqual({ [KEY]: "c1" });
  const { socket: second, gaps } = await connected({ persist: true });
  expect(second.after).toBe("c1");
  second.subscribed("c9", false); // a subscriber with a cursor may have missed notifications
  expect(gaps).toEqual(["user_1"]);
});

test("each room and each server has its own cursor", async () => {
  const persist = new Storage();
  for (const [room, url] of [["user_1", "https://a"], ["user_2", "https://a"], ["user_1", "https://b"]] as const) {
    const { socket, subscription } = await connected({ persist, url }, room);
    expect(socket.after).toBe(null);
    socket.notify("c1");
    subscription.close();
  }
  expect(Object.keys(persist.kept)).toHaveLength(3);
});

test("is written at most once a second, and finally with the last cursor", async () => {
  const persist = new Storage();
  const { socket } = await connected({ persist });
  for (let number = 0; number < 20; number++) {
    socket.notify(`c${number}`);
    await pass(100);
  }
  expect(persist.writes).toBe(2);
  await pass(1000);
  expect(persist.kept[KEY]).toBe("c19");
});

test("is written before the page is closed", async () => {
  const persist = new Storage();
  const page = new EventTarget();
  const tab = Object.assign(new EventTarget(), { visibilityState: "hidden" });
  vi.stubGlobal("window", page);
  vi.stubGlobal("document", tab);
  const { socket, subscription } = await connected({ persist });
  socket.notify("c1");
  tab.dispatchEvent(new Event("visibilitychange"));
  expect(persist.kept[KEY]).toBe("c1");
  socket.notify("c2");
  page.dispatchEvent(new Event("pagehide"));
  expect(persist.kept[KEY]).toBe("c2");
  socket.notify("c3");
  subscription.close();
  expect(persist.kept[KEY]).toBe("c3");
});

test("an explicit start takes precedence", async () => {
  const persist = new Storage();
  persist.kept[KEY] = "c1";
  expect((await connected({ persist, after: "latest" })).socket.after).toBe("latest");
});

test("is not kept by default", async () => {
  const storage = new Storage();
  vi.stubGlobal("localStorage", storage);
  const { socket, subscription } = await connected();
  socket.notify("c1");
  subscription.close();
  expect(storage.kept).toEqual({});
});

describe("a storage", () => {
  test("that is asynchronous, as React Native's, is awaited", async () => {
    let answer = (_: string | null) => {};
    const setItem = vi.fn(async () => {});
    const persist = { getItem: () => new Promise<string | null>((resolve) => (answer = resolve)), setItem };
    recordSubscription({ persist });
    await settle();
    expect(ScriptedSocket.all).toHaveLength(0);
    answer("c1");
    await settle();
    expect(ScriptedSocket.last.after).toBe("c1");
    ScriptedSocket.last.accept().notify("c2");
    await pass(1000);
    expect(setItem).toHaveBeenCalledExactlyOnceWith(KEY, "c2");
  });

  const fail = () => {
    throw new DOMException("full", "QuotaExceededError");
  };
  const refuse = () => Promise.reject(new Error("no"));
  test.each<[string, CursorStorage]>([
    ["cannot be read", { getItem: fail, setItem: () => {} }],
    ["cannot be read, later", { getItem: refuse, setItem: () => {} }],
    ["is full", { getItem: () => null, setItem: fail }],
    ["is full, later", { getItem: () => null, setItem: refuse }],
    ["holds junk", { getItem: () => "no cursor!", setItem: () => {} }],
  ])("that %s: then it is not kept", async (_, persist) => {
    const { socket, subscription, notifications } = await connected({ persist });
    expect(socket.after).toBe(null);
    socket.notify("c1");
    await pass(1000);
    socket.notify("c2");
    subscription.close();
    await settle();
    expect(notifications).toEqual(["c1", "c2"]);
  });

  test("that throws on access, as with blocked cookies, is ignored", async () => {
    const { localStorage } = globalThis;
    Object.defineProperty(globalThis, "localStorage", {
      configurable: true,
      get: () => {
        throw new DOMException("denied", "SecurityError");
      },
    });
    try {
      const { socket, notifications } = await connected({ persist: true });
      socket.notify("c1");
      expect(notifications).toEqual(["c1"]);
    } finally {
      Object.defineProperty(globalThis, "localStorage", { configurable: true, writable: true, value: localStorage });
    }
  });

  test("that is missing, as in Node, is ignored", async () => {
    vi.stubGlobal("localStorage", undefined);
    const { socket, notifications } = await connected({ persist: true });
    socket.notify("c1");
    await pass(1000);
    expect(notifications).toEqual(["c1"]);
  });
});
