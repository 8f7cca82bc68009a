/** The credential of a connection, and the warning before it expires. See PROTOCOL.md, "Subscribing". */

import type { Claims } from "../auth/claims";
import { TOKEN_EXPIRING } from "../protocol/control";
import type { Connection, Credential } from "./connection";

/**
 * A client is warned this long before its token expires, or when this share of the lifetime that the token had left
 * on arrival remains, whichever is later. Otherwise a token with a lifetime of 30 s, or a cached one that arrives
 * late, would be renewed as soon as it arrives, in an endless loop.
 */
const EXPIRY_WARNING_S = 30;
const EXPIRY_WARNING_SHARE = 2 / 3;

/** Return the credential of a connection that is opened with these claims now. */
export function credentialFor({ user, tokenId, anchor, issuedAt, expiresAt }: Claims): Credential {
  return {
    ...(user === undefined ? {} : { user }),
    ...(tokenId === undefined ? {} : { tokenId }),
    ...(anchor === undefined ? {} : { anchor }),
    ...(issuedAt === undefined ? {} : { issuedAt }),
    ...(expiresAt === undefined ? {} : { expiresAt, warnsAt: warningTime(expiresAt) }),
  };
}

/** Return the credential after a renewal. */
export function renewed(before: Credential, claims: Claims): Credential {
  const { warnsAt, ...credential } = credentialFor(claims);
  // If the token expires no later than the old one, the client has no newer one: do not warn again.
  const isNewer = (claims.expiresAt ?? Infinity) > (before.expiresAt ?? Infinity);
  const next = isNewer ? warnsAt : before.warnsAt;
  return next === undefined ? credential : { ...credential, warnsAt: next };
}

/** Warn the client if its token expires soon, once. */
export function warnBeforeExpiry(connection: Connection): void {
  const { credential } = connection.attachment;
  const { expiresAt, warnsAt } = credential;
  if (expiresAt === undefined || warnsAt === undefined || warnsAt * 1000 > Date.now()) return;
  delete credential.warnsAt;
  connection.save();
  connection.sendControl(TOKEN_EXPIRING, { expiresAt: new Date(expiresAt * 1000).toISOString() });
}

function warningTime(expiresAt: number): number {
  const leftS = expiresAt - Date.now() / 1000;
  return expiresAt - Math.min(EXPIRY_WARNING_S, leftS * EXPIRY_WARNING_SHARE);
}
