/**
 * Authentication and authorization: peers, origins, credentials, rooms.
 *
 * See PROTOCOL.md, "Authentication and authorization".
 */

import { UNRESTRICTED, allowsRoom, type Claims, type Scope } from "./claims";
import { KeysUnavailableError } from "./jwks";
import { claimsForKey, authenticateToken, InvalidTokenError } from "./tokens";
import { registriesOf } from "./registry";
import { forbidden, unauthorized, unavailable } from "../messages";
import { requestLimitsOf } from "./limits";
import { BEARER_SUBPROTOCOL } from "../protocol/control";
import { hasKeys, isLoopback, type Settings } from "../settings";

/**
 * Reject pages of other origins, which browsers would otherwise let connect with the user's network access.
 *
 * @throws RequestError 403 for a page of an origin that is not allowed; without keys, also for every client that
 *   is not on this machine.
 */
export function checkOrigin(request: Request, settings: Settings): void {
  if (!hasKeys(settings)) checkPeerWithoutKeys(request, settings);
  const origin = request.headers.get("Origin");
  if (origin === null) {
    rejectCrossSiteRequest(request);
    return;
  }
  const isAllowed =
    settings.allowedOrigins.includes(origin) ||
    namesOwnOrigin(origin, request.headers.get("Host") ?? new URL(request.url).host) ||
    (!hasKeys(settings) && isLoopback(hostOf(origin)));
  if (!isAllowed) {
    const shown = JSON.stringify(origin.slice(0, 200)).slice(1, -1);
    throw forbidden(`origin '${shown}' is not allowed: add it to ALLOWED_ORIGINS`, NOT_ALLOWED);
  }
}

const NOT_ALLOWED = "Origin not allowed";

/**
 * Reject cross-site requests without `Origin`: images, scripts, frames, forms with GET, and `fetch()` with
 * `no-cors`. Browsers mark them with `Sec-Fetch-Site` only. A page of an allowed origin is not affected, because
 * CORS requests, WebSockets and EventSource send `Origin`.
 *
 * @throws RequestError 403.
 */
function rejectCrossSiteRequest(request: Request): void {
  const site = request.headers.get("Sec-Fetch-Site");
  if (site !== null && site !== "none" && site !== "same-origin") {
    const which = `(Sec-Fetch-Site: ${site.slice(0, 50)})`;
    const what = `a page of another origin sent it without Origin ${which}`;
    const fix = "request it as fetch() does by default: only then the browser names the origin";
    throw forbidden(`${what}: ${fix}`, NOT_ALLOWED);
  }
}

/**
 * Verify a credential and return its claims; without keys, return {@link UNRESTRICTED}. Revocations are checked by
 * {@link rejectRevoked}.
 *
 * @param address the client's address, whose rate limit applies until a credential is valid; undefined: no limit.
 * @throws RequestError 401, 429, or 503 while the signing keys of an identity provider are unavailable.
 */
export async function authenticate(
  settings: Settings,
  credential: string | undefined,
  address: string | undefined,
): Promise<Claims> {
  if (!hasKeys(settings)) return UNRESTRICTED;
  const limits = requestLimitsOf(settings);
  if (!credential) {
    limits.checkRequest(undefined, address);
    throw unauthorized("no credential: send a token or a key as Authorization: Bearer …");
  }
  try {
    const claims = await claimsForKey(settings, credential);
    if (claims !== undefined) return claims;
    limits.checkAttempt(address);
    return await authenticateToken(settings, credential);
  } catch (error) {
    if (error instanceof InvalidTokenError) {
      limits.countFailedAttempt(address);
      const refused = unauthorized(error.message, true);
      refused.rejectedUser = error.user;
      throw refused;
    }
    if (error instanceof KeysUnavailableError) {
      throw unavailable("signing keys temporarily unavailable");
    }
    throw error;
  }
}

/**
 * Check whether a token was revoked. Keys cannot be revoked, so nothing is checked for them.
 *
 * @throws RequestError 401, or 503 if the revocations cannot be read.
 */
export async function rejectRevoked(env: Env, claims: Claims): Promise<void> {
  let verdicts: boolean[];
  try {
    verdicts = await Promise.all(
      registriesOf(env, claims).map((registry) => registry.isRevoked(claims.issuedAt)),
    );
  } catch {
    throw unavailable("revocations temporarily unavailable");
  }
  if (verdicts.some(Boolean)) throw revoked(claims);
}

export function revoked(claims: Claims): Error {
  const refused = unauthorized("token revoked", true);
  refused.rejectedUser = claims.user;
  return refused;
}

/**
 * Check that the claims allow an action in a room.
 *
 * @throws RequestError 403.
 */
export function authorize(claims: Claims, action: Scope, room: string): void {
  requireScope(claims, action);
  if (!allowsRoom(claims, room)) throw roomNotAllowed(claims);
}

/** The error for a room to which the credential does not grant access. */
export function roomNotAllowed(claims: Claims): Error {
  return forbidden(`the ${credentialKind(claims)} does not grant access to this room`);
}

function credentialKind(claims: Claims): string {
  return claims.key === undefined ? "token" : "key";
}

/**
 * Check that the claims have one of the scopes.
 *
 * @throws RequestError 403.
 */
export function requireScope(claims: Claims, ...scopes: [Scope, ...Scope[]]): void {
  if (!scopes.some((scope) => claims.scopes.includes(scope))) {
    throw forbidden(`the ${credentialKind(claims)} lacks scope '${scopes[0]}'`);
  }
}

/** Return the key or the token: from `Authorization`, else from the subprotocol, else from the query. */
export function credentialOf(
  headers: Headers,
  query: Map<string, string>,
  subprotocols: string[],
): string | undefined {
  const [, scheme = "", value = ""] = /^\s*(\S*)\s*(.*)$/.exec(headers.get("Authorization") ?? "") ?? [];
  if (scheme.toLowerCase() === "bearer" && value.trim() !== "") return value.trim();
  const offered = subprotocols.find((name) => name.startsWith(BEARER_SUBPROTOCOL));
  return offered === undefined ? query.get("token") : offered.slice(BEARER_SUBPROTOCOL.length);
}

/** Without keys, reject every client that is not on this machine, also behind proxies. */
function checkPeerWithoutKeys(request: Request, settings: Settings): void {
  const { headers } = request;
  const forwarded = (headers.get("Forwarded") ?? "").matchAll(/(?:^|[;,\s])for\s*=\s*("[^"]*"?|[^;,\s]*)/gi); // RFC 7239
  const peers = ["CF-Connecting-IP", "X-Forwarded-For", "X-Real-IP"]
    .flatMap((name) => (headers.get(name) ?? "").split(","))
    .concat([...forwarded].map(([, peer = ""]) => peer.replaceAll('"', "")))
    .map((peer) => withoutPort(peer.trim()));
  if (!peers.every((peer) => peer === "" || isLoopback(peer))) {
    throw noKeysError("only loopback clients are accepted");
  }
  // DNS rebinding: a page of an attacker may point its own host name to 127.0.0.1.
  const name = hostOf(`http://${headers.get("Host") ?? new URL(request.url).host}`);
  if (!isLoopback(name) && !settings.allowedOrigins.map(hostOf).includes(name)) {
    throw noKeysError("Host is not a name of this machine: use 127.0.0.1");
  }
}

/** Remove the port, which some proxies add to addresses in `X-Forwarded-For`. */
function withoutPort(peer: string): string {
  const [, v6, v4] = /^\[([0-9A-Fa-f:.]+)\](?::\d+)?$|^([0-9.]+):\d+$/.exec(peer) ?? [];
  return v6 ?? v4 ?? peer;
}

function noKeysError(details: string): Error {
  return forbidden(`${details} (no keys are configured: TOKEN_SECRETS)`, "Authentication not configured");
}

/**
 * Whether `Origin` is the server's own address, as React Native sends it, on iOS with a trailing slash.
 *
 * DNS rebinding cannot exploit this: a page whose host name points to this server has no credential, and without
 * keys the host name was checked.
 */
function namesOwnOrigin(origin: string, host: string): boolean {
  try {
    const { protocol, href } = new URL(origin);
    return /^https?:$/.test(protocol) && href === new URL(`${protocol}//${host}`).href;
  } catch {
    return false;
  }
}

function hostOf(address: string): string {
  try {
    const { hostname, username, password } = new URL(address);
    return username || password ? "" : hostname;
  } catch {
    return "";
  }
}
