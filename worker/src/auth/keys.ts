/** The keys of the settings, imported for verification. */

import { memoize } from "../memoize";
import type { Settings } from "../settings";

/** A key that may have signed a token. */
export interface Candidate {
  key: CryptoKey;
  /**
   * The trust anchor: a digest that a connection stores, so that it can be closed when a deployment removes the
   * secret or the JWK set. It does not reveal the secret, which has at least 32 bytes.
   */
  anchor: string;
}

export interface KeyRing {
  /** For HS256: several during a rotation. */
  secrets: Candidate[];
  /** The trust anchors of JWK sets, by URL. */
  addresses: Map<string, string>;
  /** The trust anchors of all secrets and JWK sets. */
  anchors: Set<string>;
  /** The SHA-256 of each API key, by name. */
  digests: Map<string, ArrayBuffer>;
}

/** Return the key ring of the settings. It is built once. */
export const keyRingOf = memoize(make);

/** Return the name of an API key. The comparison takes constant time, against timing attacks. */
export async function nameOf(ring: KeyRing, credential: string): Promise<string | undefined> {
  const digest = await digestOf(credential);
  let found: string | undefined;
  for (const [name, known] of ring.digests) {
    if (crypto.subtle.timingSafeEqual(digest, known)) found = name;
  }
  return found;
}

export function digestOf(text: string): Promise<ArrayBuffer> {
  return crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
}

async function make(settings: Settings): Promise<KeyRing> {
  const encoder = new TextEncoder();
  const hmac = { name: "HMAC", hash: "SHA-256" };
  const secrets = await Promise.all(
    settings.tokenSecrets.map(async (secret) => ({
      key: await crypto.subtle.importKey("raw", encoder.encode(secret), hmac, false, ["verify"]),
      anchor: await anchorOf(`secret ${secret}`),
    })),
  );
  const addresses = new Map<string, string>();
  for (const url of settings.jwksUrls) addresses.set(url, await anchorOf(`url ${url}`));
  const digests = new Map<string, ArrayBuffer>();
  for (const [name, key] of settings.apiKeys) digests.set(name, await digestOf(key));
  const anchors = new Set([...secrets.map(({ anchor }) => anchor), ...addresses.values()]);
  return { secrets, addresses, anchors, digests };
}

async function anchorOf(text: string): Promise<string> {
  const bytes = new Uint8Array(await digestOf(text)).slice(0, 12);
  return btoa(String.fromCharCode(...bytes));
}
