/** Revocations of tokens. See PROTOCOL.md, "Revoking". */

/** The time for which an object remembers a revocation, for handshakes that are in progress. */
const REMEMBERED_MS = 60_000;

/** The revocation of a user's tokens with an `iat` up to `at` (seconds since 1970), or of one token. */
export interface Revocation {
  kind: "user" | "token";
  subject: string;
  at: number;
}

export interface Principal {
  user?: string;
  tokenId?: string;
}

/** Whether a revocation applies to these claims. */
export function matches(revocation: Revocation, claims: Principal & { issuedAt?: number }): boolean {
  if (revocation.kind === "token") return claims.tokenId === revocation.subject;
  return claims.user === revocation.subject && (claims.issuedAt ?? 0) <= revocation.at;
}

/** The revocations of the last minute that concern connections of an object. */
export class RecentRevocations {
  #recent: { revocation: Revocation; until: number }[] = [];

  add(revocation: Revocation): void {
    const now = Date.now();
    this.#recent = this.#recent.filter(({ until }) => until > now);
    this.#recent.push({ revocation, until: now + REMEMBERED_MS });
  }

  /** Whether the token was revoked after its registry was called. */
  matches(claims: Principal & { issuedAt?: number }): boolean {
    const now = Date.now();
    return this.#recent.some(({ revocation, until }) => until > now && matches(revocation, claims));
  }
}
