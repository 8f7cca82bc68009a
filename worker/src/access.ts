/** Who may do what: peers, origins, credentials, rooms. See PROTOCOL.md, "Who may". */

import { ANYONE, allowsRoom, type Claims, type Scope } from "./auth/claims";
import { KeysUnavailableError } from "./auth/jwks";
import { claimsForKey, authenticateToken, InvalidTokenError } from "./auth/verify";
import { registriesOf } from "./registry";
import { forbidden, unauthorized, unavailable } from "./http";
import { requestLimitsOf } from "./limits";
import { BEARER_SUBPROTOCOL } from "./protocol/control";
import { hasKeys, isLoopback, type Env, type Settings } from "./settings";

/**
 * Whether to talk to this caller at all.
 *
 * @throws RequestError 403 for a page of another origin; without keys, also for everything that does
 *   not come from this machine.
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
    const shown = JSON.stringify(origin.slice(0, 200));
    throw forbidden(`origin ${shown} is not allowed: add it to ALLOWED_ORIGINS`, NOT_ALLOWED);
  }
}

const NOT_ALLOWED = "Origin not allowed";

/**
 * An image, a script, a frame, a form with GET, or `fetch()` with `no-cors` of a page of another
 * origin: browsers send no `Origin` with these, but `Sec-Fetch-Site`. A page that is allowed uses
 * CORS, a WebSocket or an EventSource, and then its `Origin` is there.
 *
 * @throws RequestError 403.
 */
function rejectCrossSiteRequest(request: Request): void {
  const site = request.headers.get("Sec-Fetch-Site");
  if (site !== null && site !== "none" && site !== "same-origin") {
    const which = `(Sec-Fetch-Site: ${site.slice(0, 50)})`;
    const what = `a page of another origin sent it without Origin ${which}`;
    throw forbidden(`${what}: add it to ALLOWED_ORIGINS`, NOT_ALLOWED);
  }
}

/**
 * What the credential says; without keys, everyone is {@link ANYONE}. Whether a token was revoked is
 * another question: {@link rejectRevoked}.
 *
 * @param address whose limits count while there is no credential that does; undefined: nobody's.
 * @throws RequestError 401, 429, or 503 while the keys of others cannot be had.
 */
export async function authenticate(
  settings: Settings,
  credential: string | undefined,
  address: string | undefined,
): Promise<Claims> {
  if (!hasKeys(settings)) return ANYONE;
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
      throw unavailable("the keys that would check the token cannot be had now");
    }
    throw error;
  }
}

/**
 * Ask whether a token was revoked. Of a key nobody is asked.
 *
 * @throws RequestError 401, or 503 when nobody can say.
 */
export async function rejectRevoked(env: Env, claims: Claims): Promise<void> {
  let verdicts: boolean[];
  try {
    verdicts = await Promise.all(
      registriesOf(env, claims).map((holder) => holder.isRevoked(claims.issuedAt)),
    );
  } catch {
    throw unavailable("nobody can say now whether the token was revoked");
  }
  if (verdicts.some(Boolean)) throw revoked(claims);
}

export function revoked(claims: Claims): Error {
  const refused = unauthorized("token revoked", true);
  refused.rejectedUser = claims.user;
  return refused;
}

/**
 * Whether these claims allow it in this room.
 *
 * @throws RequestError 403.
 */
export function authorize(claims: Claims, action: Scope, room: string): void {
  requireScope(claims, action);
  if (!allowsRoom(claims, room)) throw roomNotAllowed(claims);
}

/** The refusal of a room that the credential does not open. */
export function roomNotAllowed(claims: Claims): Error {
  return forbidden(`the ${credentialKind(claims)} does not open this room`);
}

function credentialKind(claims: Claims): string {
  return claims.key === undefined ? "token" : "key";
}

/**
 * One of them.
 *
 * @throws RequestError 403.
 */
export function requireScope(claims: Claims, ...scopes: [Scope, ...Scope[]]): void {
  if (!scopes.some((scope) => claims.scopes.includes(scope))) {
    throw forbidden(`the ${credentialKind(claims)}'s scope does not hold '${scopes[0]}'`);
  }
}

/** A key or a token: from `Authorization`, else the subprotocol, else the query. */
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

/** Without keys, a Worker is for this machine only, whoever brings the request here. */
function checkPeerWithoutKeys(request: Request, settings: Settings): void {
  const { headers } = request;
  const forwarded = (headers.get("Forwarded") ?? "").matchAll(/(?:^|[;,\s])for\s*=\s*("[^"]*"?|[^;,\s]*)/gi); // RFC 7239
  const peers = ["CF-Connecting-IP", "X-Forwarded-For", "X-Real-IP"]
    .flatMap((name) => (headers.get(name) ?? "").split(","))
    .concat([...forwarded].map(([, peer = ""]) => peer.replaceAll('"', "")))
    .map((peer) => withoutPort(peer.trim()));
  if (!peers.every((peer) => peer === "" || isLoopback(peer))) {
    throw noKeysError("it answers loopback addresses only, until it has keys");
  }
  // A name that a stranger's page has turned to 127.0.0.1 (DNS rebinding).
  const name = hostOf(`http://${headers.get("Host") ?? new URL(request.url).host}`);
  if (!isLoopback(name) && !settings.allowedOrigins.map(hostOf).includes(name)) {
    throw noKeysError("it answers to names of this machine only, until it has keys");
  }
}

/** Some proxies add the port to an address of `X-Forwarded-For`. */
function withoutPort(peer: string): string {
  const [, v6, v4] = /^\[([0-9A-Fa-f:.]+)\](?::\d+)?$|^([0-9.]+):\d+$/.exec(peer) ?? [];
  return v6 ?? v4 ?? peer;
}

function noKeysError(details: string): Error {
  return forbidden(details, "This server has no keys");
}

/**
 * React Native has no pages and sends the server's own address as `Origin`, on iOS with a slash at its end.
 * DNS rebinding gains nothing: the page of a name that was pointed here has no credential, and without keys
 * the host was checked.
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
