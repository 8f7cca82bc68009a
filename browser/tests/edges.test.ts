/** Secrets in errors, and edge cases of a subscription. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { SubscribeOptions } from "../src/options.js";
import type { State } from "../src/state.js";
import { subscribe } from "../src/subscription.js";
import { script, settle, Socket, Stream } from "./scripted.js";

const SECRET = "se/cret="; // not a valid subprotocol, so it goes into the URL

let close = () => {};

function listen(options: SubscribeOptions = {}) {
  const states: State[] = [];
  const subscription = subscribe("user_1", {
    url: "http://rooms.test", maxReconnects: 0, onStateChange: (state) => states.push(state), ...options,
  });
  close = () => subscription.close();
  return { subscription, states };
}

beforeEach(() => {
  script();
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"] });
});

afterEach(async () => {
  close();
  await settle();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test("the error for an invalid URL does not contain the URL", async () => {
  expect(() => listen({ url: "http://user:password@no host", token: SECRET })).toThrow(/^url: .*"http:\/\/no host"/);
  vi.stubGlobal("WebSocket", function (url: string) {
    throw new DOMException(`The URL '${url}' is invalid.`, "SyntaxError"); // as in Chromium
  });
  const { subscription } = listen({ url: "http://user:password@no%host", token: SECRET });
  await settle();
  const { status, error } = subscription.state;
  expect([status, error?.retriable]).toEqual(["closed", false]);
  expect(error?.message).toContain("SyntaxError");
  for (const secret of [SECRET, encodeURIComponent(SECRET), "password"]) expect(error?.message).not.toContain(secret);
});

test("the error for a failed fetch does not contain the URL", async () => {
  vi.stubGlobal("WebSocket", undefined);
  vi.stubGlobal("fetch", (url: string) => Promise.reject(new TypeError(`'${url}' is a URL that includes credentials`)));
  const { subscription } = listen({ url: "http://user:password@rooms.test", token: SECRET });
  await settle();
  expect(subscription.state.status).toBe("closed");
  expect(subscription.state.error?.message).not.toContain("password");
});

test("uses an event stream if the platform has no WebSocket", async () => {
  vi.stubGlobal("WebSocket", undefined);
  const { subscription } = listen({ token: SECRET });
  await settle();
  Stream.last.accept();
  await settle();
  expect(subscription.state).toEqual({ status: "open", transport: "sse" });
  expect(Stream.last.url).not.toContain("cret");
  expect(Stream.last.init.headers.Authorization).toBe(`Bearer ${SECRET}`);
});

test.each(["null", "[]", '"no"', "no JSON", '{"details":5}', ""])("a rejection is final whatever its body: %j", async (body) => {
  const { subscription } = listen({ token: "t" });
  await settle();
  Socket.last.end();
  await settle();
  Stream.last.refuse(401, body);
  await settle();
  expect(subscription.state).toMatchObject({
    status: "closed", error: { message: "the server answered 401", code: 401, retriable: false },
  });
});

test("closing while connecting does not call token()", async () => {
  const token = vi.fn(() => "t");
  const { subscription } = listen({ token, onStateChange: () => subscription.close() });
  await settle();
  expect([token.mock.calls.length, Socket.all.length]).toEqual([0, 0]);
});

test("closing while the cursor is loaded does not call token()", async () => {
  const token = vi.fn(() => "t");
  let found = (_: string | null) => {};
  const persist = { getItem: () => new Promise<string | null>((resolve) => (found = resolve)), setItem: () => {} };
  const { subscription } = listen({ token, persist });
  await settle();
  subscription.close();
  found("c-1");
  await settle();
  expect([token.mock.calls.length, Socket.all.length]).toEqual([0, 0]);
});
