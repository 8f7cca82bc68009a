/** The keys of the settings, in the form in which they are used. */

import type { Settings } from "../settings";

export interface KeyRing {
  /** For HS256; the first ones may be on their way out. */
  secrets: CryptoKey[];
  /** The SHA-256 of each program's key, by name. */
  digests: Map<string, ArrayBuffer>;
}

const known = new WeakMap<Settings, Promise<KeyRing>>();

/** The key ring; made once. */
export function keyRingOf(settings: Settings): Promise<KeyRing> {
  let ring = known.get(settings);
  if (ring === undefined) {
    ring = make(settings);
    known.set(settings, ring);
  }
  return ring;
}

/** Whose API key this is. It takes as long for a wrong one as for a right one. */
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
    settings.tokenSecrets.map((secret) =>
      crypto.subtle.importKey("raw", encoder.encode(secret), hmac, false, ["verify"]),
    ),
  );
  const digests = new Map<string, ArrayBuffer>();
  for (const [name, key] of settings.apiKeys) digests.set(name, await digestOf(key));
  return { secrets, digests };
}
