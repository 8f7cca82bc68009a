/** The keys of the settings, in the form in which they are used. */

import type { Settings } from "../settings";

/** A key that may have signed a token. */
export interface Candidate {
  key: CryptoKey;
  /**
   * What a connection remembers of it, so that it is closed when a deployment has removed the secret, or
   * the JWK set: a digest, which tells nothing of a secret of 32 bytes.
   */
  voucher: string;
}

export interface KeyRing {
  /** For HS256; the first ones may be on their way out. */
  secrets: Candidate[];
  /** The vouchers of JWK sets, by address. */
  addresses: Map<string, string>;
  /** All of them. */
  vouchers: Set<string>;
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
    settings.tokenSecrets.map(async (secret) => ({
      key: await crypto.subtle.importKey("raw", encoder.encode(secret), hmac, false, ["verify"]),
      voucher: await voucherOf(`secret ${secret}`),
    })),
  );
  const addresses = new Map<string, string>();
  for (const url of settings.jwksUrls) addresses.set(url, await voucherOf(`url ${url}`));
  const digests = new Map<string, ArrayBuffer>();
  for (const [name, key] of settings.apiKeys) digests.set(name, await digestOf(key));
  const vouchers = new Set([...secrets.map(({ voucher }) => voucher), ...addresses.values()]);
  return { secrets, addresses, vouchers, digests };
}

async function voucherOf(text: string): Promise<string> {
  const bytes = new Uint8Array(await digestOf(text)).slice(0, 12);
  return btoa(String.fromCharCode(...bytes));
}
