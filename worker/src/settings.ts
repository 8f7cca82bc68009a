/** Settings: the Worker's variables and secrets. See docs/cloudflare.md. */

import { memoize } from "./memoize";

export interface Settings {
  /** Origins of pages that may use the server: `https://app.example.com`. */
  allowedOrigins: string[];
  /** Secrets for verifying tokens (HS256). */
  tokenSecrets: string[];
  /** API keys by name. */
  apiKeys: Map<string, string>;
  jwksUrls: string[];
  /** The required `iss` and `aud` of tokens. */
  tokenIssuer?: string;
  tokenAudience?: string;
  tokenLeewayS: number;
  /** The maximum lifetime of a token, from its `iat`, else from now. Revocations are kept for at least as long. */
  tokenMaxLifetimeS: number;
  /** The retention of a room: notifications, seconds and bytes. */
  retentionCount: number;
  retentionS: number;
  requestRetentionS: number;
  maxRoomBytes: number;
  /** How long the record of a job is kept after its last change, and how many records a room has. */
  jobRetentionS: number;
  jobsPerUser: number;
  /** Pieces of a text that are published within this time are stored and delivered together; 0: each alone. */
  pieceIntervalMs: number;
  /** A WebSocket from which nothing was received for this long is closed; 0: never. */
  idleTimeoutS: number;
  /** 0 is no limit, here and below. */
  maxConnectionsPerUser: number;
  maxConnectionsPerRoom: number;
  requestsPerS: number;
  readBytesPerS: number;
  publishesPerS: number;
  publishBytesPerS: number;
  messagesPerS: number;
}

/** An invalid setting. The message names it, and contains no secret. */
export class ConfigurationError extends Error {}

// An origin as browsers send it: no path, no user, no upper case.
const ORIGIN = /^[a-z][a-z0-9+.\-]*:\/\/(?:\[[0-9a-f:.]+\]|[a-z0-9_.\-]+)(?::[0-9]{1,5})?$/;
/** RFC 7518, section 3.2: a key must be at least as long as the hash. */
const MIN_SECRET_BYTES = 32;

/**
 * Return the settings. They are read once.
 *
 * @throws ConfigurationError it names the first invalid setting.
 */
export const settingsOf = memoize(read);

export function hasKeys(settings: Settings): boolean {
  const { tokenSecrets, jwksUrls, apiKeys } = settings;
  return tokenSecrets.length > 0 || jwksUrls.length > 0 || apiKeys.size > 0;
}

function read(env: Env): Settings {
  const text = (name: string): string | undefined => {
    const value = (env as unknown as Record<string, unknown>)[name];
    return typeof value === "string" && value.trim() !== "" ? value.trim() : undefined;
  };
  const parts = (name: string): string[] =>
    (text(name) ?? "").split(",").map((part) => part.trim()).filter(Boolean);
  const number = (name: string, fallback: number, least = 0, most = Number.MAX_SAFE_INTEGER) => {
    const given = text(name);
    const value = given === undefined ? fallback : Number(given);
    if (!(value >= least && value <= most)) {
      throw new ConfigurationError(`${name}: expected a number of at least ${least}`);
    }
    return value;
  };
  const optional = <Name extends string>(member: Name, name: string) => {
    const value = text(name);
    return (value === undefined ? {} : { [member]: value }) as { [member in Name]?: string };
  };
  return {
    allowedOrigins: parts("ALLOWED_ORIGINS").map(checkOrigin),
    tokenSecrets: parts("TOKEN_SECRETS").map((each) => checkSecret("TOKEN_SECRETS", each)),
    apiKeys: readKeys(parts("API_KEYS")),
    jwksUrls: parts("JWKS_URLS").map(checkUrl),
    ...optional("tokenIssuer", "TOKEN_ISSUER"),
    ...optional("tokenAudience", "TOKEN_AUDIENCE"),
    tokenLeewayS: number("TOKEN_LEEWAY_S", 10, 0, 300),
    tokenMaxLifetimeS: number("TOKEN_MAX_LIFETIME_S", 90 * 86_400, 1, 10 * 366 * 86_400),
    retentionCount: number("RETENTION_COUNT", 1000, 1, 100_000),
    retentionS: number("RETENTION_S", 24 * 3600, 1),
    requestRetentionS: number("REQUEST_RETENTION_S", 3600, 1),
    maxRoomBytes: number("MAX_ROOM_BYTES", 64 * 1024 * 1024, 1024 * 1024),
    jobRetentionS: number("JOB_RETENTION_S", 7 * 86_400, 1),
    jobsPerUser: number("JOBS_PER_USER", 1000, 1, 10_000),
    pieceIntervalMs: number("PIECE_INTERVAL_MS", 40, 0, 10_000),
    idleTimeoutS: number("IDLE_TIMEOUT_S", 75),
    maxConnectionsPerUser: number("MAX_CONNECTIONS_PER_USER", 50),
    maxConnectionsPerRoom: number("MAX_CONNECTIONS_PER_ROOM", 10_000),
    requestsPerS: number("REQUESTS_PER_S", 200),
    readBytesPerS: number("READ_BYTES_PER_S", 20 * 1024 * 1024),
    publishesPerS: number("PUBLISHES_PER_S", 10_000),
    publishBytesPerS: number("PUBLISH_BYTES_PER_S", 20 * 1024 * 1024),
    messagesPerS: number("MESSAGES_PER_S", 100),
  };
}

/** Parse API keys, `name=key` each. A key without a name is named by its index. */
function readKeys(parts: string[]): Map<string, string> {
  const keys = new Map<string, string>();
  for (const [place, part] of parts.entries()) {
    const at = part.indexOf("=");
    const isNamed = at > 0 && /[^=]/.test(part.slice(at + 1));
    const name = isNamed ? part.slice(0, at) : `key-${place + 1}`;
    const key = checkSecret(`API_KEYS: ${name}`, isNamed ? part.slice(at + 1) : part);
    if (!/^[!-~]+$/.test(key)) {
      throw new ConfigurationError(
        `API_KEYS: ${name}: expected ASCII without spaces, because an HTTP header carries it`,
      );
    }
    keys.set(name, key);
  }
  return keys;
}

function checkSecret(name: string, secret: string): string {
  if (new TextEncoder().encode(secret).length < MIN_SECRET_BYTES) {
    throw new ConfigurationError(
      `${name}: expected at least ${MIN_SECRET_BYTES} bytes; make one with: synap-realtime generate-keys`,
    );
  }
  return secret;
}

function checkOrigin(given: string): string {
  // Normalize it as browsers do: in lower case, without a port that the scheme implies (RFC 6454, section 6.2).
  const origin = given
    .toLowerCase()
    .replace(/\/+$/, "")
    .replace(/^(http:\/\/.+):80$|^(https:\/\/.+):443$/, "$1$2");
  if (!ORIGIN.test(origin)) {
    throw new ConfigurationError(
      "ALLOWED_ORIGINS: expected scheme://host[:port], as browsers send it, for each; no *, no path",
    );
  }
  return origin;
}

function checkUrl(url: string): string {
  let parts: URL | undefined;
  try {
    parts = new URL(url);
  } catch {
    // reported below
  }
  const isGood =
    parts?.protocol === "https:" || (parts?.protocol === "http:" && isLoopback(parts.hostname));
  // The message does not contain the URL, which may contain a secret.
  if (!isGood) throw new ConfigurationError("JWKS_URLS: expected https://… for each");
  return url;
}

/** Whether a host is a loopback address or name. */
export function isLoopback(host: string): boolean {
  const address = host.replace(/^\[|\]$/g, "").toLowerCase();
  return (
    address === "localhost" ||
    address === "::1" ||
    /^(?:::ffff:)?127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}$/.test(address)
  );
}
