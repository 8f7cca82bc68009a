/** What a key or a token says of who shows it. See PROTOCOL.md, "Who may". */

import { matches, roomOwner } from "../protocol/rooms";

export const SCOPES = ["subscribe", "broadcast", "presence", "metrics", "admin"] as const;
export type Scope = (typeof SCOPES)[number];

/** What a credential says, after it was found to be genuine. Times in seconds since 1970. */
export interface Claims {
  /** The user's id (`sub`); undefined for a key, and for a token that names nobody. */
  user?: string;
  /** Patterns of the rooms that it opens, beside the user's own. */
  rooms: string[];
  scopes: Scope[];
  device?: string;
  /** The name of the publisher's key; undefined for a token. */
  key?: string;
  /** `jti`, else a hash of the token: for revoking it. Undefined for a key. */
  tokenId?: string;
  /** Which of the server's secrets or JWK sets has vouched for the token. Undefined for a key. */
  voucher?: string;
  issuedAt?: number;
  /** Undefined: a key, which does not end. */
  expiresAt?: number;
}

/** On a Worker without keys, which answers this machine only: everyone may everything. */
export const ANYONE: Claims = { rooms: ["*"], scopes: [...SCOPES] };

/** Whether the room is the user's own, or one of those that the credential names. */
export function allowsRoom(claims: Claims, room: string): boolean {
  if (claims.user !== undefined && roomOwner(room) === claims.user) return true;
  return claims.rooms.some((pattern) => matches(pattern, room));
}
