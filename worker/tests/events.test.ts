/** The log lines of rejected requests. */

import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { logRejected } from "../src/events";

const PROBLEM = { error: "Unauthorized", code: "unauthorized", details: "token expired" };

let said: string[] = [];
let now = Date.now();

function lines(): string[] {
  return said;
}

beforeEach(() => {
  said = [];
  now += 60_000; // each case has its own second
  vi.spyOn(Date, "now").mockImplementation(() => now);
  vi.spyOn(console, "warn").mockImplementation((line) => void said.push(String(line)));
});

afterEach(() => {
  vi.restoreAllMocks();
});

test("a log line contains the cause, the room and the origin, and no token", () => {
  const request = new Request("https://rooms.example/rooms/user_1/subscribe?token=SECRET", {
    headers: { Origin: "https://app.example" },
  });
  logRejected(request, PROBLEM, { closeCode: 4501, user: "1" });
  expect(lines()).toEqual([
    'rejected user="1" room="user_1" code="unauthorized" details="token expired" ' +
      'origin="https://app.example" close_code=4501',
  ]);
});

test("for a notification of a batch, it contains the room and the name of the API key", () => {
  const claims = { rooms: ["*"], scopes: [], key: "jobs" };
  const problem = { error: "Forbidden", code: "forbidden", details: "no" };
  const request = new Request("https://rooms.example/broadcast", { method: "POST" });
  logRejected(request, problem, { claims, room: "user_7" });
  logRejected(request, problem, { claims, room: { not: "a room" } });
  expect(lines()).toEqual([
    'rejected key="jobs" room="user_7" code="forbidden" details="no"',
    'rejected key="jobs" code="forbidden" details="no"',
  ]);
});

test("untrusted text cannot add a line, and invalid content is not repeated", () => {
  const request = new Request("https://rooms.example/rooms/no%0Aroom/history", {
    headers: { Origin: `https://${"x".repeat(500)}` },
  });
  logRejected(request, { error: "Invalid room id", code: "invalid_request", details: "SECRET" });
  expect(lines()[0]).toMatch(/^rejected code="invalid_request" details="Invalid room id" origin="https:\/\/x{192}"$/);
});

test("unauthenticated clients cannot fill the log", () => {
  const request = new Request("https://rooms.example/");
  for (let n = 0; n < 1000; n++) logRejected(request, PROBLEM);
  expect(lines().length).toBe(10);
});

for (const secret of ["k".repeat(32), "Zm9v_QmFyQmF6-UXV4MTIzNDU2Nzg5MDEyMzQ1Njc4OQ", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"]) {
  test(`a credential in place of a room or an origin is not logged: ${secret.slice(0, 6)}`, () => {
    const headers = { Origin: `https://app.example/${secret}` };
    logRejected(new Request(`https://rooms.example/rooms/user_${secret}/history`, { headers }), PROBLEM);
    expect(lines()[0]).toContain('room="');
    for (const part of secret.split(".")) expect(lines()[0]).not.toContain(part.slice(0, 12));
  });
}
