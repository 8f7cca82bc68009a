/** The public keys of an identity provider: a JWK set (RFC 7517) at an address. */

import { importJWK, type JWK } from "jose";

/** Keys older than this are fetched anew, while the old ones still count. */
const FRESH_MS = 300_000;
/** Keys older than this do not count: one that was withdrawn must not live on. */
const STALE_MS = 3_600_000;
/** A key that is not there is looked for once in this time, however many ask for it. */
const RETRY_INTERVAL_MS = 10_000;
/** While it is looked for, by so many: a Worker's requests cannot wait for one another. */
const MAX_LOADS = 4;
const TIMEOUT_MS = 5000;
const MAX_BYTES = 1024 * 1024;
const MAX_KEYS = 100;

/** What a token may be signed with, and the type of key (RFC 7518, section 6.1; RFC 8037). */
export const ALGORITHMS: Record<string, string> = { RS256: "RSA", ES256: "EC", EdDSA: "OKP" };
const CURVES: Record<string, string> = { ES256: "P-256", EdDSA: "Ed25519" };

/** The keys cannot be had now: nobody can say whether the token is good. */
export class KeysUnavailableError extends Error {}

interface PublicKey {
  algorithm: string;
  id: string | undefined;
  key: CryptoKey;
}

type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** The keys at one address. */
export class Jwks {
  #keys: PublicKey[] = [];
  #fetchedAt = -Infinity;
  #triedAt = -Infinity;
  #loadStarts: number[] = []; // when those began that load them now

  constructor(
    private readonly url: string,
    private readonly fetcher: Fetch = (url, init) => fetch(url, init),
    private readonly clock: () => number = Date.now,
  ) {}

  /**
   * The keys that may have signed such a token; empty if there is none.
   *
   * @throws KeysUnavailableError nobody knows.
   */
  async find(algorithm: string, kid: string | undefined): Promise<CryptoKey[]> {
    // A Worker has no life between requests, in which it could fetch: who comes after five minutes
    // waits for the new keys, and if they cannot be had, the old ones still count.
    if (this.#ageMs() > FRESH_MS && this.#canRetry() && !this.#isBusy()) await this.#load();
    let found = this.#matching(algorithm, kid);
    if (found.length === 0 && this.#canRetry()) {
      // It may be on its way: to come back is right, to be told that no key fits would be wrong.
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

  /** A time in the future is as far away: the clock was set back, and keys must not count for longer. */
  #sinceMs(at: number): number {
    return Math.abs(this.clock() - at);
  }

  /** Whether enough are loading, while there are keys that count. */
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
      const answer = await this.fetcher(this.url, {
        headers: { Accept: "application/json" },
        redirect: "manual",
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      if (answer.status !== 200) throw new Error(`answered ${answer.status}`);
      const keys = await keysOf(await readDocument(answer));
      this.#keys = keys;
      this.#fetchedAt = this.clock();
    } catch (error) {
      const shown = shownOf(this.url);
      const reason = String(error).replaceAll(this.url, shown).replace(/\/\/\S*@/g, "//…@");
      console.error(`fetching JWKS failed, keeping previous keys: ${shown}: ${reason}`);
    } finally {
      // Set at the end: a request that was let go meanwhile must not hold up the others.
      if (this.#triedAt === before) this.#triedAt = this.clock();
      this.#loadStarts = [];
    }
  }
}

/** An address without the user, the password and the query, which may be secrets. */
function shownOf(url: string): string {
  const { origin, pathname } = new URL(url);
  return origin + pathname;
}

async function readDocument(answer: Response): Promise<unknown> {
  let text = "";
  let bytes = 0; // of what was decoded, if it came compressed
  const decoder = new TextDecoder();
  for await (const chunk of answer.body ?? []) {
    bytes += (chunk as Uint8Array).length;
    if (bytes > MAX_BYTES) throw new Error(`has more than ${MAX_BYTES} bytes`);
    text += decoder.decode(chunk as Uint8Array, { stream: true });
  }
  return JSON.parse(text);
}

/** The keys of a JWK set that we can use; others are passed over (RFC 7517, section 5). */
async function keysOf(document: unknown): Promise<PublicKey[]> {
  const members = (document as { keys?: unknown } | null)?.keys;
  if (!Array.isArray(members)) throw new Error("is no JWK set");
  const keys: PublicKey[] = [];
  for (const member of members.slice(0, MAX_KEYS) as JWK[]) {
    if (typeof member !== "object" || member === null || (member.use ?? "sig") !== "sig") continue;
    const algorithm = algorithmOf(member);
    if (algorithm === undefined) continue; // a shared secret has no place in public
    try {
      const { kty, n, e, crv, x, y } = member; // never a private half
      const given = { kty, n, e, crv, x, y };
      const parts = Object.fromEntries(Object.entries(given).filter(([, part]) => part));
      const key = (await importJWK(parts as JWK, algorithm)) as CryptoKey;
      keys.push({ algorithm, id: typeof member.kid === "string" ? member.kid : undefined, key });
    } catch {
      console.warn("a key of the JWK set cannot be used");
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
