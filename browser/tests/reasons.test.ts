/** The causes of connection errors, as far as a page can know them. */
import { describe, expect, test, vi } from "vitest";
import { recordSubscription, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

const RULES: [code: number, word: RegExp, isFinal: boolean][] = [
  [4401, /token expired/, false], [4501, /token missing or invalid/, true], [4503, /does not grant access to this room/, true],
  [4504, /revoked/, true], [4529, /connection limit/, true], [4008, /slow consumer/, false], [4009, /idle/, false],
  [4012, /restarting/, false], [4029, /rate limit/, false],
];
test.each(RULES)("close code %i has a default reason", async (code, word, isFinal) => {
  const { subscription } = recordSubscription({ token: "t" });
  await settle();
  ScriptedSocket.last.acceptAndRefuse(code);
  expect(subscription.state.error).toMatchObject({ message: expect.stringMatching(word) as string, code, retriable: !isFinal });
});

test.each(["token expired", "invalid signature", "audience mismatch"])("the server's reason takes precedence: %s", async (reason) => {
  const { subscription } = recordSubscription({ token: "t" });
  await settle();
  ScriptedSocket.last.acceptAndRefuse(4501, reason);
  expect(subscription.state.error).toMatchObject({ message: reason, code: 4501, retriable: false });
  await pass(600_000);
  expect(ScriptedSocket.all).toHaveLength(1);
});

test("a misconfigured server is reported, and retried with increasing delays over the same transport", async () => {
  const { subscription } = recordSubscription({ token: "t" });
  await settle();
  ScriptedSocket.last.acceptAndRefuse(1011, "The server's settings are wrong: TOKEN_SECRETS: expected at least 32 bytes");
  await settle();
  expect(ScriptedStream.all).toEqual([]);
  expect(subscription.state).toMatchObject({
    status: "reconnecting", error: { message: expect.stringContaining("TOKEN_SECRETS") as string, code: 1011, retriable: true },
  });
});

describe("a page", () => {
  async function failing(answers: boolean, url = "https://me:secret@rooms.example/base", page = "https://app.example") {
    vi.stubGlobal("location", { origin: page, protocol: page.split("//")[0] });
    vi.stubGlobal("fetch", (asked: string, init: RequestInit) => {
      if (!asked.endsWith("/subscribe")) probes.push([asked, init.mode]);
      return init.mode === "no-cors" && answers ? Promise.resolve(new Response(null)) : Promise.reject(new TypeError("Failed to fetch"));
    });
    const probes: [string, string | undefined][] = [];
    ScriptedSocket.areBlocked = true;
    const { subscription } = recordSubscription({ token: "t", url });
    await settle();
    return { message: subscription.state.error?.message, subscription, probes };
  }

  test("reports that the server is unreachable", async () => {
    const { message, subscription } = await failing(false);
    expect(message).toMatch(/^cannot reach https:\/\/rooms\.example\/base/);
    expect(message).not.toContain("secret");
    expect(subscription.state.status).toBe("reconnecting");
  });

  test("reports that its origin may not be allowed", async () => {
    const { message, probes } = await failing(true);
    expect(message).toMatch(/https:\/\/rooms\.example\/base.*does not allow origin https:\/\/app\.example \(--allowed-origins\)/);
    expect(message).not.toContain("secret");
    expect(probes.map(([, mode]) => mode)).toEqual([undefined, "no-cors"]);
  });

  test("of the server's own origin sends no probe", async () => {
    const { message, probes } = await failing(true, "https://app.example/base");
    expect(message).toMatch(/^cannot reach https:\/\/app\.example\/base/);
    expect(probes).toHaveLength(1);
  });

  test("over https with an http server reports it, and does not retry", async () => {
    const { message, subscription } = await failing(false, "http://rooms.example");
    expect(message).toMatch(/http:\/\/rooms\.example.*use https/);
    expect(subscription.state).toMatchObject({ status: "closed", error: { retriable: false } });
  });

  test("over https may use a loopback server", async () => {
    const { subscription } = await failing(false, "http://127.0.0.1:8787");
    expect(subscription.state.status).toBe("reconnecting");
  });
});

test("an HTML page instead of a stream is a final error", async () => {
  ScriptedSocket.areBlocked = true;
  vi.stubGlobal("fetch", async () => new Response("<!doctype html>", { headers: { "Content-Type": "text/html; charset=utf-8" } }));
  const { subscription } = recordSubscription({ token: "t", url: "https://www.example" });
  await settle();
  expect(subscription.state).toMatchObject({
    status: "closed", error: { message: expect.stringContaining("is a room server at https://www.example?") as string, retriable: false },
  });
});

test("an interrupted stream is reported as such, not as unreachable", async () => {
  ScriptedSocket.areBlocked = true;
  const { subscription } = recordSubscription({ token: "t" });
  await settle();
  ScriptedStream.last.accept();
  await settle();
  ScriptedStream.last.fail();
  await settle();
  expect(subscription.state).toMatchObject({ status: "reconnecting", error: { message: "the stream was interrupted" } });
});
