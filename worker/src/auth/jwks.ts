/** The public keys of an identity provider: a JWK set (RFC 7517) at a URL. */

import { importJWK, type JWK } from "jose";

/** Keys older than this are fetched again. If that fails, the old ones are still used. */
const FRESH_MS = 300_000;
/** Keys older than this are not used, so that a withdrawn key does not stay valid. */
const STALE_MS = 3_600_000;
/** The minimum time between fetches, so that tokens with unknown key ids cannot cause more. */
const RETRY_INTERVAL_MS = 10_000;
/** Concurrent fetches. There may be several, because the requests of a Worker cannot wait for one another. */
const MAX_LOADS = 4;
const TIMEOUT_MS = 5000;
const MAX_BYTES = 1024 * 1024;
const MAX_KEYS = 100;

/** The signature algorithms, and their key types (RFC 7518, section 6.1; RFC 8037). */
export const ALGORITHMS: Record<string, string> = { RS256: "RSA", ES256: "EC", EdDSA: "OKP" };
const CURVES: Record<string, string> = { ES256: "P-256", EdDSA: "Ed25519" };

/** The keys cannot be fetched, so the token cannot be verified. */
export class KeysUnavailableError extends Error {}

interface PublicKey {
  algorithm: string;
  id: string | undefined;
  key: CryptoKey;
}

type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** The keys at one URL. */
export class Jwks {
  #keys: PublicKey[] = [];
  #fetchedAt = -Infinity;
  #triedAt = -Infinity;
  #loadStarts: number[] = []; // start times of the running fetches

  constructor(
    private readonly url: string,
    private readonly fetcher: Fetch = (url, init) => fetch(url, init),
    private readonly clock: () => number = Date.now,
  ) {}

  /**
   * Return the keys that may have signed a token with this algorithm and key id; empty if there is none.
   *
   * @throws KeysUnavailableError the keys cannot be fetched.
   */
  async find(algorithm: string, kid: string | undefined): Promise<CryptoKey[]> {
    // A Worker cannot fetch in the background, between requests. So a request that finds old keys waits for the
    // fetch; if it fails, the old keys are used.
    if (this.#ageMs() > FRESH_MS && this.#canRetry() && !this.#isBusy()) await this.#load();
    let found = this.#matching(algorithm, kid);
    if (found.length === 0 && this.#canRetry()) {
      // Other requests are fetching, and may find the key: 503 lets the client retry, 401 would not.
      if (this.#isBusy()) throw new KeysUnavailableError(shownOf(this.url));
      await this.#load();
      found = this.#matching(algorithm, kid);
    }
    if (this.#ageMs() > STALE_MS) throw new KeysUnavailableError(shownOf(this.url));
    return found;
  }

  #ageMs(): number {
    return this.#sinceMs(this.#fetchedAt);
  }

  #canRetry(): boolean {
    return this.#sinceMs(this.#triedAt) >= RETRY_INTERVAL_MS;
  }

  /** Return the distance in time. If the clock was set back, `at` is in the future, and must still age. */
  #sinceMs(at: number): number {
    return Math.abs(this.clock() - at);
  }

  /** Whether enough fetches are running, and there are keys to use meanwhile. */
  #isBusy(): boolean {
    const recent = this.#loadStarts.filter((at) => this.#sinceMs(at) < TIMEOUT_MS);
    return recent.length >= MAX_LOADS && this.#ageMs() <= STALE_MS;
  }

  #matching(algorithm: string, kid: string | undefined): CryptoKey[] {
    return this.#keys
      .filter((each) => each.algorithm === algorithm && (kid === undefined || each.id === kid))
      .map((each) => each.key);
  }

  async #load(): Promise<void> {
    const before = this.#triedAt;
    this.#loadStarts.push(this.clock());
    try {
      const response = await this.fetcher(this.url, {
        headers: { Accept: "application/json" },
        redirect: "manual",
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      if (response.status !== 200) throw new Error(`HTTP ${response.status}`);
      const keys = await parseKeys(await readDocument(response));
      this.#keys = keys;
      this.#fetchedAt = this.clock();
    } catch (error) {
      const shown = shownOf(this.url);
      const reason = String(error).replaceAll(this.url, shown).replace(/\/\/\S*@/g, "//…@");
      console.error(`fetching JWKS failed, keeping previous keys: ${shown}: ${reason}`);
    } finally {
      // Set at the end, because the runtime may cancel this request before it gets here: others must be able to retry.
      if (this.#triedAt === before) this.#triedAt = this.clock();
      this.#loadStarts = [];
    }
  }
}

/** Return a URL without user, password and query, which may be secrets. */
function shownOf(url: string): string {
  const { origin, pathname } = new URL(url);
  return origin + pathname;
}

async function readDocument(response: Response): Promise<unknown> {
  let text = "";
  let bytes = 0; // after decompression
  const decoder = new TextDecoder();
  for await (const chunk of response.body ?? []) {
    bytes += (chunk as Uint8Array).length;
    if (bytes > MAX_BYTES) throw new Error(`larger than ${MAX_BYTES} bytes`);
    text += decoder.decode(chunk as Uint8Array, { stream: true });
  }
  return JSON.parse(text);
}

/** Import the usable keys of a JWK set, and skip others (RFC 7517, section 5). */
async function parseKeys(document: unknown): Promise<PublicKey[]> {
  const members = (document as { keys?: unknown } | null)?.keys;
  if (!Array.isArray(members)) throw new Error("not a JWK set");
  const keys: PublicKey[] = [];
  for (const member of members.slice(0, MAX_KEYS) as JWK[]) {
    if (typeof member !== "object" || member === null || (member.use ?? "sig") !== "sig") continue;
    const algorithm = algorithmOf(member);
    if (algorithm === undefined) continue; // also skips symmetric keys, which a JWK set must not publish
    try {
      const { kty, n, e, crv, x, y } = member; // never the private parts
      const given = { kty, n, e, crv, x, y };
      const parts = Object.fromEntries(Object.entries(given).filter(([, part]) => part));
      const key = (await importJWK(parts as JWK, algorithm)) as CryptoKey;
      keys.push({ algorithm, id: typeof member.kid === "string" ? member.kid : undefined, key });
    } catch {
      console.warn(`skipping unusable JWK, kid=${JSON.stringify(String(member.kid).slice(0, 100))}`);
    }
  }
  return keys;
}

function algorithmOf(member: JWK): string | undefined {
  const [algorithm] = Object.entries(ALGORITHMS).find(([, type]) => type === member.kty) ?? [];
  if (algorithm === undefined || (member.alg ?? algorithm) !== algorithm) return undefined;
  const curve = CURVES[algorithm];
  return curve === undefined || member.crv === curve ? algorithm : undefined;
}
