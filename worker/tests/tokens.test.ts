/** The tokens of all servers: tests/conformance/tokens.json. PROTOCOL.md, "Authentication and authorization". */

import { afterEach, expect, test, vi } from "vitest";

import vectors from "../../tests/conformance/tokens.json";
import { allowsRoom, type Scope } from "../src/auth/claims";
import { KeysUnavailableError, Jwks } from "../src/auth/jwks";
import { authenticateToken, InvalidTokenError } from "../src/auth/tokens";
import { settingsOf, type Settings } from "../src/settings";

const JWKS = "https://id.example/jwks";
const NOW = vectors.now * 1000;

function settings(more: Record<string, string> = {}): Settings {
  return settingsOf({
    TOKEN_SECRETS: vectors.secrets.join(","),
    JWKS_URLS: JWKS,
    ...more,
  } as unknown as Env);
}

function named(name: string): string {
  return vectors.tokens.find((vector) => vector.name === name)!.token;
}

afterEach(() => {
  vi.restoreAllMocks();
});

test.each(vectors.tokens)("$name", async ({ token, expected }) => {
  vi.spyOn(globalThis, "fetch").mockImplementation(async () => Response.json(vectors.jwks));
  const claims = authenticateToken(settings(), token, NOW);
  if (expected.status === 401) {
    await expect(claims).rejects.toThrow(InvalidTokenError);
    return;
  }
  const { user, device, scopes } = await claims;
  expect({ user: user ?? null, device: device ?? null, scopes: [...scopes].sort() }).toEqual({
    ...expected.says,
    scopes: [...expected.says!.scopes].sort(),
  });
  for (const { action, room, status } of expected.asks ?? []) {
    const hasScope = scopes.includes(action as Scope) ||
      (action === "metrics" && scopes.includes("admin"));
    const isOpen = room === null || allowsRoom(await claims, room);
    expect(hasScope && isOpen ? 200 : 403, `${action} ${room}`).toBe(status);
  }
});

test("the error of an invalid token names its user only if the signature is valid", async () => {
  const token = named("sub opens the user's room and no other's");
  const userOf = (of: Settings, text: string, now: number): Promise<unknown> =>
    authenticateToken(of, text, now).then(() => "accepted", (error: InvalidTokenError) => error.user);
  expect(await userOf(settings(), token, NOW + 1e12)).toBe("u1"); // expired
  expect(await userOf(settings({ TOKEN_ISSUER: "https://id.example" }), token, NOW)).toBe("u1");
  expect(await userOf(settings({ TOKEN_MAX_LIFETIME_S: "1" }), token, NOW)).toBe("u1");
  expect(await userOf(settings({ TOKEN_SECRETS: "x".repeat(32) }), token, NOW)).toBe(undefined);
});

test("a token without the required iss or aud is invalid", async () => {
  const token = named("sub opens the user's room and no other's");
  for (const more of [{ TOKEN_ISSUER: "https://id.example" }, { TOKEN_AUDIENCE: "rooms" }]) {
    await expect(authenticateToken(settings(more), token, NOW)).rejects.toThrow("missing claim");
  }
  const issued = named("an iss, where none is asked for");
  const right = settings({ TOKEN_ISSUER: "https://id.example" });
  expect((await authenticateToken(right, issued, NOW)).user).toBe("u1");
  const wrong = settings({ TOKEN_ISSUER: "https://other.example" });
  await expect(authenticateToken(wrong, issued, NOW)).rejects.toThrow("issuer mismatch");
});

test("a missing key causes one fetch in 10 s; old keys are used for an hour", async () => {
  let now = 0;
  let isUp = true;
  let asked = 0;
  const jwks = new Jwks(
    JWKS,
    async () => {
      asked++;
      return isUp ? Response.json(vectors.jwks) : new Response(null, { status: 500 });
    },
    () => now,
  );
  expect((await jwks.find("RS256", "RS256")).length).toBe(1);
  expect(await jwks.find("RS256", "gone")).toEqual([]);
  expect(asked).toBe(1);
  now = 10_000;
  expect(await jwks.find("RS256", "gone")).toEqual([]);
  expect(asked).toBe(2);
  isUp = false;
  now = 400_000;
  expect((await jwks.find("RS256", "RS256")).length).toBe(1);
  now = 3_700_000;
  await expect(jwks.find("RS256", "RS256")).rejects.toThrow(KeysUnavailableError);
});

test("keys that were fetched while the clock was ahead are not used for longer", async () => {
  let now = 3 * 86_400_000;
  let asked = 0;
  const jwks = new Jwks(
    JWKS,
    async () => Response.json(++asked === 1 ? vectors.jwks : { keys: [] }),
    () => now,
  );
  expect((await jwks.find("RS256", "RS256")).length).toBe(1);
  now = 0;
  expect(await jwks.find("RS256", "RS256")).toEqual([]); // it was withdrawn
  expect(asked).toBe(2);
});

for (const [what, answer] of [
  ["a redirect", () => new Response(null, { status: 302, headers: { Location: "https://other.example/" } })],
  ["another redirect", () => new Response(null, { status: 308, headers: { Location: "http://127.0.0.1/" } })],
  ["keys behind too many bytes", () => new Response(JSON.stringify({ padding: "x".repeat(1024 * 1024), ...vectors.jwks }))],
  ["many bytes of two each", () => new Response(JSON.stringify({ padding: "é".repeat(600_000), ...vectors.jwks }))],
  ["no end", () => new Response(new ReadableStream({ pull: (to) => to.enqueue(new Uint8Array(65_536).fill(32)) }))],
  ["HTML", () => new Response("<html>")],
  ["a list", () => Response.json([])],
  ["keys that are none", () => Response.json({ keys: "all" })],
] as const) {
  test(`a JWK set that is ${what} is not taken, and the keys before it count`, async () => {
    let now = 0;
    let given: RequestInit | undefined;
    let answers: () => Response = () => Response.json(vectors.jwks);
    const fetcher = async (_: string, init: RequestInit) => {
      given = init;
      return answers();
    };
    const jwks = new Jwks(JWKS, fetcher, () => now);
    expect((await jwks.find("RS256", "RS256")).length).toBe(1);
    answers = answer;
    now = 400_000;
    expect((await jwks.find("RS256", "RS256")).length).toBe(1);
    expect(given).toMatchObject({ redirect: "manual" });
    now = 3_700_000;
    await expect(jwks.find("RS256", "RS256")).rejects.toThrow(KeysUnavailableError);
  });
}

test("keys for another use or algorithm, and symmetric keys, are skipped", async () => {
  const [rsa] = vectors.jwks.keys.filter(({ kty }: { kty: string }) => kty === "RSA");
  const keys = [
    { ...rsa, use: "enc" },
    { ...rsa, alg: "RS512" },
    { ...rsa, alg: "HS256" },
    { kty: "oct", k: btoa("s".repeat(32)), alg: "HS256" },
    null,
    "key",
  ];
  const jwks = new Jwks(JWKS, async () => Response.json({ keys }), () => 0);
  for (const algorithm of ["RS256", "ES256", "EdDSA", "HS256"]) {
    expect(await jwks.find(algorithm, undefined)).toEqual([]);
  }
});

test("a thousand tokens with unknown kids fetch the keys once in 10 s", async () => {
  let now = 0;
  let asked = 0;
  const fetcher = async () => {
    asked++;
    return Response.json(vectors.jwks);
  };
  const jwks = new Jwks(JWKS, fetcher, () => now);
  for (let n = 0; n < 1000; n++) {
    now += 20;
    await jwks.find("RS256", `kid ${n}`);
  }
  expect(asked).toBe(2); // 20 s
});

test("concurrent requests for a missing key cause few fetches; the others are retried", async () => {
  let now = 0;
  let asked = 0;
  let answer: () => void = () => undefined;
  const answered = new Promise<void>((resolve) => (answer = resolve));
  const jwks = new Jwks(
    JWKS,
    async () => {
      if (++asked > 1) await answered;
      return Response.json(vectors.jwks);
    },
    () => now,
  );
  await jwks.find("RS256", "RS256");
  now = 20_000;
  const all = Array.from({ length: 100 }, () => jwks.find("RS256", "gone"));
  const settled = Promise.allSettled(all);
  expect((await jwks.find("RS256", "RS256")).length).toBe(1); // a known key needs no fetch
  answer();
  const outcomes = await settled;
  expect(asked).toBe(1 + 4);
  for (const outcome of outcomes) {
    if (outcome.status === "rejected") expect(outcome.reason).toBeInstanceOf(KeysUnavailableError);
    else expect(outcome.value).toEqual([]);
  }
});

test("a request that is cancelled during a fetch delays the others by at most 5 s", async () => {
  let now = 0;
  let asked = 0;
  const jwks = new Jwks(
    JWKS,
    () => {
      asked++;
      return asked > 1 && asked < 6 ? new Promise(() => undefined) : Promise.resolve(Response.json(vectors.jwks));
    },
    () => now,
  );
  await jwks.find("RS256", "RS256");
  now = 20_000;
  for (let n = 0; n < 4; n++) void jwks.find("RS256", "gone");
  await expect(jwks.find("RS256", "gone")).rejects.toThrow(KeysUnavailableError);
  now = 25_000;
  expect(await jwks.find("RS256", "gone")).toEqual([]);
});

test("errors do not contain the value, which may be a misplaced secret", () => {
  const given = { JWKS_URLS: "https://id.example/jwks,a-secret" } as unknown as Env;
  expect(() => settingsOf(given)).toThrow(/^((?!a-secret).)*$/);
});

test.each([
  [{ TOKEN_SECRETS: "short" }, "TOKEN_SECRETS: expected at least 32 bytes"],
  [{ API_KEYS: "jobs=short" }, "API_KEYS: jobs: expected at least 32 bytes"],
  [{ JWKS_URLS: "http://id.example" }, "JWKS_URLS: expected https://"],
  [{ ALLOWED_ORIGINS: "app.example" }, "ALLOWED_ORIGINS: expected scheme://host"],
  [{ RETENTION_COUNT: "many" }, "RETENTION_COUNT: expected a number"],
])("settings that are wrong are named: %o", (given, message) => {
  expect(() => settingsOf(given as unknown as Env)).toThrow(message);
});

test("the default port is not a part of an allowed origin", () => {
  const given = "https://a.example:443,http://b.example:80/,https://c.example:80";
  const env = { ALLOWED_ORIGINS: given } as unknown as Env;
  expect(settingsOf(env).allowedOrigins).toEqual([
    "https://a.example",
    "http://b.example",
    "https://c.example:80",
  ]);
});
