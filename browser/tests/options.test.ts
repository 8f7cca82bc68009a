/** An invalid option throws at the call, and the error names it. */
import { describe, expect, test } from "vitest";
import { subscribe, subscribeShared } from "../src/index.js";
import { ScriptedSocket, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

const WRONG: [name: string, values: unknown[]][] = [
  ["url", [
    "/realtime", "realtime", "rooms.example", "//rooms.example", "", "https://", "https:///path", "ftp://a.example",
    "https://a b", "https://a.example?x=1", "https://a.example#x", "https://a.example:99999", "https://a.example:x",
    "javascript:alert(1)", "wss:a.example", 5, NaN, null, {}, ["https://a.example"],
  ]],
  ["token", ["", 5, NaN, {}, [], true, "<!doctype html><html>", "a\nb"]],
  ["after", [5, NaN, {}, "a b", "a/b", "x".repeat(65)]],
  ["maxReconnects", [NaN, -1, 1.5, "5", null, -Infinity]],
  ["device", ["", 5, NaN, null, "a b", "x".repeat(65)]],
  ["acknowledge", ["true", 1, NaN, null, {}]],
  ["presence", ["1", 1, "", null]],
  ["persist", ["localStorage", 1, null, {}, { getItem: () => null }, { getItem: 1, setItem: 2 }]],
  ["onNotification", ["f", 1, {}, true]],
  ["onStateChange", [""]],
  ["onGap", [NaN]],
  ["onPresence", [[]]],
];

describe.each(WRONG)("%s", (name, values) => {
  test.each(values.map((value) => [value]))("%j", async (value) => {
    for (const each of [subscribe, subscribeShared]) {
      const call = () => each("user_1", { [name]: value });
      expect(call).toThrow(TypeError);
      expect(call).toThrow(new RegExp(`^${name}: expected `));
    }
    await settle();
    expect(ScriptedSocket.all).toEqual([]);
  });
});

test.each([
  undefined, null, 5, "", "user_", "user", "user_undefined", "user_null", "user_NaN", "request_undefined", "user_a b",
  "user_a/b", "synap_x", "User_1", "user_[object Object]", `user_${"x".repeat(201)}`,
])("room %j", (room) => {
  for (const each of [subscribe, subscribeShared]) expect(() => each(room as string)).toThrow(/^room: expected /);
});

test("errors contain no password of a URL and nothing of a token", () => {
  const message = (options: object) => {
    try {
      subscribe("user_1", options);
    } catch (error) {
      return (error as Error).message;
    }
  };
  expect(message({ url: "ftp://me:secret@a.example/?token=secret" })).not.toContain("secret");
  expect(message({ token: "secret\n" })).not.toContain("secret");
});

test("a missing id in a template literal is rejected, too", async () => {
  const { vi } = await import("vitest");
  vi.stubEnv("NEXT_PUBLIC_REALTIME_URL", "rooms.example");
  expect(() => subscribe("user_1")).toThrow(/^NEXT_PUBLIC_REALTIME_URL: expected https:\/\//);
});

test.each([
  { maxReconnects: 0 }, { maxReconnects: Infinity }, { after: "earliest" }, { after: "" }, { device: "a.b@c" }, { token: null },
  { onGap: undefined }, { persist: false }, { persist: { getItem: () => null, setItem: () => {} } }, { url: "http://[::1]:8787/a/" },
])("%j is right", (options) => {
  subscribe("user_1", options).close();
});
