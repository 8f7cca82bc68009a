/** The claims of a key or a token. See PROTOCOL.md, "Authentication and authorization". */

import { matches, roomOwner } from "../protocol/rooms";

export const SCOPES = ["subscribe", "broadcast", "presence", "metrics", "admin"] as const;
export type Scope = (typeof SCOPES)[number];

/** The claims of a verified credential. Times are in seconds since 1970. */
export interface Claims {
  /** The user's id (`sub`); undefined for a key, and for a token without `sub`. */
  user?: string;
  /** Patterns of the rooms to which it grants access, besides the user's own. */
  rooms: string[];
  scopes: Scope[];
  device?: string;
  /** The name of the API key; undefined for a token. */
  key?: string;
  /** The id for revoking the token: `jti`, else a hash. Undefined for a key. */
  tokenId?: string;
  /** The trust anchor: it identifies the secret or the JWK set that verified the token. Undefined for a key. */
  anchor?: string;
  issuedAt?: number;
  /** Undefined for a key, which does not expire. */
  expiresAt?: number;
}

/** The claims of every client of a Worker without keys: all rooms and scopes. Only loopback clients get here. */
export const UNRESTRICTED: Claims = { rooms: ["*"], scopes: [...SCOPES] };

/** Whether the room is the user's own, or matches a pattern of the credential. */
export function allowsRoom(claims: Claims, room: string): boolean {
  if (claims.user !== undefined && roomOwner(room) === claims.user) return true;
  return claims.rooms.some((pattern) => matches(pattern, room));
}
