/** From a credential to what it says, or to why it does not count. */

import { decodeJwt, decodeProtectedHeader, errors, jwtVerify, type JWTPayload } from "jose";

import { isDevice, isPattern } from "../protocol/rooms";
import type { Settings } from "../settings";
import { SCOPES, type Claims, type Scope } from "./claims";
import { ALGORITHMS, Jwks, KeysUnavailableError } from "./jwks";
import { digestOf, keyRingOf, nameOf } from "./keyring";

export const MAX_TOKEN_BYTES = 8 * 1024;
const MAX_PATTERNS = 1000;
const MAX_TEXT = 512;

/** The credential does not count. The message says why, and nothing of what is in it. */
export class InvalidTokenError extends Error {}

const known = new Map<string, Jwks>(); // by address, for as long as the isolate lives

/**
 * What a publisher's key or a token says.
 *
 * @throws InvalidTokenError it does not count.
 * @throws KeysUnavailableError the keys that would say so cannot be had now.
 */
export async function identify(
  settings: Settings,
  credential: string,
  now = Date.now(),
): Promise<Claims> {
  if (credential.length > MAX_TOKEN_BYTES) {
    throw new InvalidTokenError(`it has more than ${MAX_TOKEN_BYTES} bytes`);
  }
  const name = await nameOf(await keyRingOf(settings), credential);
  if (name !== undefined) return { rooms: ["*"], scopes: ["broadcast"], key: name };
  if (credential.split(".").length !== 3) {
    throw new InvalidTokenError("it is no key of this server, and no JWT");
  }
  return claimsOf(await verify(settings, credential, now), credential);
}

/** What a token is known by, from its `jti` or from the token itself; not checked. */
export async function idOfToken(text: string): Promise<string> {
  if (text.split(".").length !== 3) return text;
  let id: unknown;
  try {
    id = decodeJwt(text).jti;
  } catch {
    return text;
  }
  return typeof id === "string" && id !== "" ? id : hashOf(text);
}

async function verify(settings: Settings, token: string, now: number): Promise<JWTPayload> {
  let header: Record<string, unknown>;
  try {
    header = decodeProtectedHeader(token);
  } catch {
    throw new InvalidTokenError("it is no JWT");
  }
  if ("crit" in header) {
    // RFC 7515, section 4.1.11
    throw new InvalidTokenError("its header has a 'crit' that this server does not know");
  }
  // The algorithm chooses the kind of key, and no key is ever used for another: a public key is no
  // shared secret, whatever the header says (RFC 8725, section 3.1).
  const algorithm = header["alg"];
  let candidates: CryptoKey[];
  if (algorithm === "HS256") {
    candidates = (await keyRingOf(settings)).secrets;
  } else if (typeof algorithm === "string" && Object.hasOwn(ALGORITHMS, algorithm)) {
    candidates = await publicKeys(settings, algorithm, header["kid"]);
  } else {
    const all = ["HS256", ...Object.keys(ALGORITHMS)].join(", ");
    throw new InvalidTokenError(`its algorithm is none of ${all}`);
  }
  for (const key of candidates) {
    try {
      const { payload } = await jwtVerify(token, key, {
        algorithms: [algorithm],
        requiredClaims: ["exp"],
        clockTolerance: settings.tokenLeewayS,
        currentDate: new Date(now),
        ...(settings.tokenIssuer === undefined ? {} : { issuer: settings.tokenIssuer }),
        ...(settings.tokenAudience === undefined ? {} : { audience: settings.tokenAudience }),
      });
      checkMore(payload, settings, now);
      return payload;
    } catch (error) {
      if (error instanceof errors.JWSSignatureVerificationFailed) continue;
      throw error instanceof InvalidTokenError ? error : new InvalidTokenError(reasonOf(error));
    }
  }
  throw new InvalidTokenError("no key of this server has signed it");
}

/** What the library leaves to us. */
function checkMore(payload: JWTPayload, settings: Settings, now: number): void {
  const issuedAt = payload.iat;
  if (typeof issuedAt === "number" && issuedAt > now / 1000 + settings.tokenLeewayS) {
    throw new InvalidTokenError(NOT_YET);
  }
  if (settings.tokenAudience === undefined && payload.aud != null) {
    throw new InvalidTokenError(OTHER_AUDIENCE);
  }
}

const NOT_YET = "it is not good yet: its 'nbf' or 'iat' is in the future";
const OTHER_AUDIENCE = "it was made for another audience";

function reasonOf(error: unknown): string {
  if (error instanceof errors.JWTExpired) return "it has expired";
  if (error instanceof errors.JWTClaimValidationFailed) {
    if (error.reason === "missing") {
      return "it has no 'exp': tokens must end, or a claim that is asked for is missing";
    }
    if (error.claim === "nbf" || error.claim === "iat") return NOT_YET;
    if (error.claim === "iss") return "its issuer is not the one that this server asks for";
    if (error.claim === "aud") return OTHER_AUDIENCE;
    return "its claims have wrong types";
  }
  return "it is wrong";
}

async function publicKeys(
  settings: Settings,
  algorithm: string,
  kid: unknown,
): Promise<CryptoKey[]> {
  if (kid !== undefined && typeof kid !== "string") {
    throw new InvalidTokenError("its 'kid' is no text");
  }
  const found: CryptoKey[] = [];
  let failure: KeysUnavailableError | undefined;
  for (const url of settings.jwksUrls) {
    let jwks = known.get(url);
    if (jwks === undefined) known.set(url, (jwks = new Jwks(url)));
    try {
      found.push(...(await jwks.find(algorithm, kid)));
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
  if (device !== undefined && !isDevice(device)) throw wrong("device");
  const issuedAt = momentOf(payload, "iat");
  const expiresAt = momentOf(payload, "exp");
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

function wrong(claim: string): InvalidTokenError {
  return new InvalidTokenError(`its claim '${claim}' is wrong`);
}

function textOf(payload: JWTPayload, name: string): string | undefined {
  const value = payload[name] ?? undefined;
  if (value === undefined) return undefined;
  if (typeof value !== "string" || value === "" || value.length > MAX_TEXT) throw wrong(name);
  return value;
}

function momentOf(payload: JWTPayload, name: string): number | undefined {
  const value = payload[name] ?? undefined;
  if (value === undefined) return undefined;
  if (typeof value !== "number" || !Number.isFinite(value)) throw wrong(name);
  return Math.min(value, 1e11);
}

function patternsOf(value: unknown): string[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value) || value.length > MAX_PATTERNS) throw wrong("rooms");
  return value.map((pattern: unknown) => {
    if (typeof pattern !== "string" || !isPattern(pattern)) throw wrong("rooms");
    return pattern;
  });
}

/** RFC 8693, section 4.2: words with spaces between. Those of other servers mean nothing. */
function scopesOf(value: unknown): Scope[] {
  if (value === undefined || value === null) return ["subscribe"];
  const words: unknown = typeof value === "string" ? value.split(/\s+/) : value;
  if (!Array.isArray(words) || !words.every((word) => typeof word === "string")) {
    throw wrong("scope");
  }
  return SCOPES.filter((scope) => words.includes(scope));
}

/** Without its signature: of an ES256 one there is a second, which everybody can compute. */
async function hashOf(token: string): Promise<string> {
  const digest = new Uint8Array(await digestOf(token.slice(0, token.lastIndexOf("."))));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
