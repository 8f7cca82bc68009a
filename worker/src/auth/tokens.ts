/** Verification of credentials: from a key or a token to its claims, or to the reason why it is invalid. */

import { compactVerify, decodeJwt, decodeProtectedHeader, errors, jwtVerify, type JWTPayload } from "jose";

import { DEVICE_PROBLEM, isDevice, isPattern, PATTERN_PROBLEM } from "../protocol/rooms";
import type { Settings } from "../settings";
import { SCOPES, type Claims, type Scope } from "./claims";
import { ALGORITHMS, Jwks, KeysUnavailableError } from "./jwks";
import { digestOf, keyRingOf, nameOf, type Candidate } from "./keys";

export const MAX_TOKEN_BYTES = 8 * 1024;
const MAX_PATTERNS = 1000;
/** The maximum number of characters of a user's id, and of a token's. */
export const MAX_TEXT = 512;
/** Control characters, and lone surrogates, which cannot be encoded in UTF-8. */
const UNPRINTABLE = /[\p{Cc}\p{Cs}]/u;

/** The text is not a complete JWT. The message contains nothing of it. */
export class MalformedTokenError extends Error {}

/**
 * The credential is invalid. The message starts with the cause ("token expired", "invalid signature", "audience
 * mismatch") and contains nothing of the token but names of claims.
 */
export class InvalidTokenError extends Error {
  /** The user of a token with a valid signature. For the log only: it grants nothing. */
  user?: string | undefined;
}

const known = new Map<string, Jwks>(); // by URL, for the lifetime of the isolate

/** Return the claims of an API key; undefined if it is not a key of this server. */
export async function claimsForKey(settings: Settings, text: string): Promise<Claims | undefined> {
  if (text.length > MAX_TOKEN_BYTES) return undefined;
  const name = await nameOf(await keyRingOf(settings), text);
  return name === undefined ? undefined : { rooms: ["*"], scopes: ["broadcast"], key: name };
}

/**
 * Verify a token and return its claims.
 *
 * @throws InvalidTokenError the token is invalid.
 * @throws KeysUnavailableError the signing keys cannot be fetched.
 */
export async function authenticateToken(
  settings: Settings,
  token: string,
  now = Date.now(),
): Promise<Claims> {
  if (token.length > MAX_TOKEN_BYTES) {
    throw new InvalidTokenError(`token too long: more than ${MAX_TOKEN_BYTES} bytes`);
  }
  if (token.split(".").length !== 3) {
    throw new InvalidTokenError("unknown key: not a key of this server, and not a JWT");
  }
  const { payload, anchor } = await verify(settings, token, now);
  try {
    const claims = { ...(await claimsOf(payload, token)), anchor };
    checkLifetime(claims, settings, now);
    return claims;
  } catch (error) {
    throw withUser(error, payload);
  }
}

/** Add the user to the error. Call it only if the signature is valid. */
function withUser(error: unknown, payload: JWTPayload): unknown {
  if (!(error instanceof InvalidTokenError)) return error;
  try {
    error.user = textOf(payload, "sub");
  } catch {
    // the token has no valid `sub`
  }
  return error;
}

/** Reject a token that would outlive its revocation: see {@link revocationRetentionMs}. */
function checkLifetime(claims: Claims, settings: Settings, now: number): void {
  const most = settings.tokenMaxLifetimeS;
  const begins = claims.issuedAt ?? now / 1000 + settings.tokenLeewayS;
  if (claims.expiresAt !== undefined && claims.expiresAt - begins > most) {
    throw new InvalidTokenError(
      `token lifetime too long: more than ${most} s (TOKEN_MAX_LIFETIME_S)`,
    );
  }
}

/**
 * Return how long a revocation must be kept so that no revoked token becomes valid again. A token is accepted
 * until its expiry plus the leeway, and its issuer's clock may have been ahead by the leeway.
 */
export function revocationRetentionMs(settings: Settings): number {
  return (settings.tokenMaxLifetimeS + 2 * settings.tokenLeewayS + 60) * 1000;
}

const JWT = /(?<![\w-])e(?:y[A-L]|w[k-r0-3])[\w-]{5,}/g;

/** Whether a text decodes to JSON. An id may start like a JWT by chance, but does not decode to JSON. */
function beginsAsJson(encoded: string): boolean {
  const start = encoded.slice(0, 24).replaceAll("-", "+").replaceAll("_", "/");
  return /^[\t\n\r\x20-\x7e]*$/.test(atob(start.slice(0, start.length - (start.length % 4))));
}

/** Whether a text is a key or a secret of this server, or contains a JWT or a part of one. */
export async function isCredential(settings: Settings, text: string): Promise<boolean> {
  const given = text.trim();
  if ([...given.matchAll(JWT)].some(([found]) => beginsAsJson(found))) return true;
  if (settings.tokenSecrets.includes(given)) return true;
  return (await nameOf(await keyRingOf(settings), given)) !== undefined;
}

/**
 * Return the id under which a token is revoked: its `jti`, else a hash of what was signed.
 *
 * The signature must be valid, unless the signing keys cannot be fetched. The claims are not checked: the token
 * may be expired, not valid yet, or meant for another audience.
 *
 * @returns undefined if no key of this server has signed the token, so that it is invalid anyway.
 * @throws MalformedTokenError the text is not a JWT.
 */
export async function tokenId(settings: Settings, token: string): Promise<string | undefined> {
  let header: Record<string, unknown>;
  let payload: JWTPayload;
  try {
    if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) throw new Error("not three parts of base64url");
    header = decodeProtectedHeader(token);
    payload = decodeJwt(token);
  } catch {
    throw new MalformedTokenError("expected a whole JWT: header, payload and signature");
  }
  const algorithm = header["alg"];
  try {
    for (const { key } of await candidatesOf(settings, header)) {
      try {
        await compactVerify(token, key, { algorithms: [String(algorithm)] });
        return await idOf(payload, token);
      } catch {
        // try the next key
      }
    }
  } catch (error) {
    // A revocation must not depend on the identity provider.
    if (error instanceof KeysUnavailableError) return idOf(payload, token);
    if (!(error instanceof InvalidTokenError)) throw error;
  }
  return undefined;
}

async function idOf(payload: JWTPayload, token: string): Promise<string> {
  try {
    return textOf(payload, "jti") ?? (await hashOf(token));
  } catch {
    return hashOf(token); // such a token is invalid
  }
}

/** Return the keys that may have signed a token with this header. */
async function candidatesOf(
  settings: Settings,
  header: Record<string, unknown>,
): Promise<Candidate[]> {
  // Each key is used with one algorithm only, whatever the header says. Otherwise an attacker could sign with a
  // public key as an HMAC secret (RFC 8725, section 3.1).
  const algorithm = header["alg"];
  if (algorithm === "HS256") return (await keyRingOf(settings)).secrets;
  if (typeof algorithm === "string" && Object.hasOwn(ALGORITHMS, algorithm)) {
    return publicKeys(settings, algorithm, header["kid"]);
  }
  const all = ["HS256", ...Object.keys(ALGORITHMS)].join(", ");
  throw new InvalidTokenError(`unsupported algorithm: expected ${all}`);
}

async function verify(
  settings: Settings,
  token: string,
  now: number,
): Promise<{ payload: JWTPayload; anchor: string }> {
  let header: Record<string, unknown>;
  try {
    header = decodeProtectedHeader(token);
  } catch {
    throw new InvalidTokenError("malformed token: not a JWT");
  }
  if ("crit" in header) {
    // RFC 7515, section 4.1.11
    throw new InvalidTokenError("unsupported header parameter 'crit'");
  }
  const candidates = await candidatesOf(settings, header);
  const algorithm = String(header["alg"]);
  for (const { key, anchor } of candidates) {
    try {
      const { payload } = await jwtVerify(token, key, {
        algorithms: [algorithm],
        requiredClaims: ["exp"],
        clockTolerance: settings.tokenLeewayS,
        currentDate: new Date(now),
        ...(settings.tokenIssuer === undefined ? {} : { issuer: settings.tokenIssuer }),
        ...(settings.tokenAudience === undefined ? {} : { audience: settings.tokenAudience }),
      });
      try {
        checkMore(payload, settings, now);
      } catch (error) {
        throw withUser(error, payload);
      }
      return { payload, anchor };
    } catch (error) {
      if (error instanceof errors.JWSSignatureVerificationFailed) continue;
      // The library checks the signature first, so the claims that it rejects are authentic.
      if (error instanceof errors.JWTExpired || error instanceof errors.JWTClaimValidationFailed) {
        throw withUser(new InvalidTokenError(reasonOf(error)), error.payload);
      }
      throw error instanceof InvalidTokenError ? error : new InvalidTokenError(reasonOf(error));
    }
  }
  throw new InvalidTokenError("invalid signature: not signed by a key of this server");
}

/** Check the claims that the library does not check. */
function checkMore(payload: JWTPayload, settings: Settings, now: number): void {
  const issuedAt = payload.iat;
  if (typeof issuedAt === "number" && issuedAt > now / 1000 + settings.tokenLeewayS) {
    throw new InvalidTokenError(NOT_YET);
  }
  if (settings.tokenAudience === undefined && payload.aud != null) {
    throw new InvalidTokenError(UNEXPECTED_AUDIENCE);
  }
}

const NOT_YET = "token not valid yet: 'nbf' or 'iat' is in the future";
const UNEXPECTED_AUDIENCE = "audience mismatch: the token has an 'aud', and this server expects none";
const MISMATCHES: Record<string, string> = {
  iss: "issuer mismatch: not the 'iss' that this server expects",
  aud: "audience mismatch: not the 'aud' that this server expects",
};

function reasonOf(error: unknown): string {
  if (error instanceof errors.JWTExpired) return "token expired";
  if (error instanceof errors.JWTClaimValidationFailed) {
    const { claim, reason } = error;
    if (reason === "missing") return `missing claim '${claim}'`;
    if (reason === "invalid") return `invalid claim '${claim}': expected seconds since 1970`;
    if (claim === "nbf" || claim === "iat") return NOT_YET;
    return MISMATCHES[claim] ?? `invalid claim '${claim}'`;
  }
  return "malformed token: not a JWT";
}

async function publicKeys(
  settings: Settings,
  algorithm: string,
  kid: unknown,
): Promise<Candidate[]> {
  if (kid !== undefined && typeof kid !== "string") {
    throw new InvalidTokenError("malformed token: 'kid' is not a string");
  }
  const found: Candidate[] = [];
  const { addresses } = await keyRingOf(settings);
  let failure: KeysUnavailableError | undefined;
  for (const url of settings.jwksUrls) {
    let jwks = known.get(url);
    if (jwks === undefined) known.set(url, (jwks = new Jwks(url)));
    try {
      const anchor = addresses.get(url)!;
      found.push(...(await jwks.find(algorithm, kid)).map((key) => ({ key, anchor })));
    } catch (error) {
      if (!(error instanceof KeysUnavailableError)) throw error;
      failure = error;
    }
  }
  if (found.length === 0 && failure !== undefined) throw failure;
  return found;
}

async function claimsOf(payload: JWTPayload, token: string): Promise<Claims> {
  const user = textOf(payload, "sub");
  const device = payload["device"] ?? undefined;
  if (device !== undefined && !isDevice(device)) throw wrong("device", DEVICE_PROBLEM);
  const issuedAt = numericDate(payload, "iat");
  const expiresAt = numericDate(payload, "exp");
  return {
    rooms: patternsOf(payload["rooms"]),
    scopes: scopesOf(payload["scope"]),
    tokenId: textOf(payload, "jti") ?? (await hashOf(token)),
    ...(user === undefined ? {} : { user }),
    ...(device === undefined ? {} : { device }),
    ...(issuedAt === undefined ? {} : { issuedAt }),
    ...(expiresAt === undefined ? {} : { expiresAt }),
  };
}

function wrong(claim: string, problem: string): InvalidTokenError {
  return new InvalidTokenError(`invalid claim '${claim}': ${problem}`);
}

function textOf(payload: JWTPayload, name: string): string | undefined {
  const value = payload[name] ?? undefined;
  if (value === undefined) return undefined;
  if (typeof value !== "string" || value === "" || [...value].length > MAX_TEXT) {
    throw wrong(name, `expected a string of 1 to ${MAX_TEXT} characters`);
  }
  if (UNPRINTABLE.test(value)) {
    throw wrong(name, "expected no control characters and no lone surrogates");
  }
  return value;
}

function numericDate(payload: JWTPayload, name: string): number | undefined {
  const value = payload[name] ?? undefined;
  if (value === undefined) return undefined;
  if (typeof value !== "number" || !Number.isFinite(value)) throw wrong(name, "expected seconds since 1970");
  return Math.min(value, 1e11);
}

function patternsOf(value: unknown): string[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value) || value.length > MAX_PATTERNS) throw wrong("rooms", "expected a list");
  return value.map((pattern: unknown) => {
    if (typeof pattern !== "string" || !isPattern(pattern)) throw wrong("rooms", PATTERN_PROBLEM);
    return pattern;
  });
}

/** Parse space-separated scopes (RFC 8693, section 4.2). Unknown ones are ignored. */
function scopesOf(value: unknown): Scope[] {
  if (value === undefined || value === null) return ["subscribe"];
  const words: unknown = typeof value === "string" ? value.split(/\s+/) : value;
  if (!Array.isArray(words) || !words.every((word) => typeof word === "string")) {
    throw wrong("scope", "expected words separated by spaces");
  }
  return SCOPES.filter((scope) => words.includes(scope));
}

/**
 * Hash the token without its signature. For each ES256 signature, anyone can compute a second valid one, which would
 * give the token another hash and so evade a revocation.
 */
async function hashOf(token: string): Promise<string> {
  const digest = new Uint8Array(await digestOf(token.slice(0, token.lastIndexOf("."))));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
