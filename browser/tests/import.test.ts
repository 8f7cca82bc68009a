/** Importing the modules accesses no global, so a bundle works in a page, on a server and in a worker. */
import { runInNewContext } from "node:vm";
import { build } from "esbuild";
import { expect, test } from "vitest";

const GLOBALS = [
  "window", "self", "document", "navigator", "location", "localStorage", "process", "global", "WebSocket",
  "EventSource", "BroadcastChannel", "AbortController", "TextDecoderStream", "URLSearchParams", "Event",
  "EventTarget", "fetch", "setTimeout", "clearTimeout", "queueMicrotask", "console",
];

/** A global object with the language built-ins only. It records every other access in `asked`. */
async function load(entry: string, asked: string[], globals: object = {}) {
  const { outputFiles } = await build({
    entryPoints: [`src/${entry}.ts`],
    bundle: true, write: false, format: "cjs", target: "es2022", external: ["react"],
  });
  const module = { exports: {} as Record<string, unknown> };
  const sandbox = { module, require: () => ({ createContext: () => ({}) }), ...globals };
  for (const name of GLOBALS) {
    if (!(name in sandbox)) Object.defineProperty(sandbox, name, { get: () => void asked.push(name) });
  }
  runInNewContext(outputFiles[0]?.text ?? "", sandbox);
  return module.exports;
}

test.each([
  ["index", ["RealtimeError", "subscribe", "subscribeShared"]],
  ["job", ["JobTracker"]],
  ["react", ["RealtimeProvider", "useJob", "useJobs", "useSynapRealtime"]],
])("%s looks for nothing", async (entry, names) => {
  const asked: string[] = [];
  const exports = await load(entry, asked);
  expect(asked).toEqual([]);
  expect(Object.keys(exports).sort()).toEqual(names);
});

test("works with only a WebSocket and timers", async () => {
  const sockets: { url: string; onopen?: () => void; onmessage?: (event: object) => void }[] = [];
  class WebSocket {
    protocol = "synap.v1";
    readyState = 1;
    onclose?: (event: object) => void;
    constructor(readonly url: string, [protocol]: string[]) {
      if (protocol === "synap.v2") queueMicrotask(() => this.onclose?.({ code: 1006 }));
      else sockets.push(this);
    }
    send() {}
    close() {}
  }
  const globals = { WebSocket, setTimeout, clearTimeout, queueMicrotask, URLSearchParams, Event: undefined };
  const exports = await load("index", [], globals);
  const received: unknown[] = [];
  const subscription = (exports.subscribeShared as typeof import("../src/index.js").subscribeShared)("user_1", {
    persist: true,
    onNotification: ({ type }) => void received.push(type),
  });
  await expect.poll(() => sockets.length).toBe(1);
  sockets[0]?.onopen?.();
  sockets[0]?.onmessage?.({ data: '{"type":"a.b","data":{},"cursor":"c1"}' });
  expect(sockets[0]?.url).toBe("ws://127.0.0.1:8787/rooms/user_1/subscribe");
  expect(received).toEqual(["a.b"]);
  subscription.close();
});
