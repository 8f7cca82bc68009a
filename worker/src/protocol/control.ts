/**
 * Keepalive, control frames and close codes.
 *
 * See PROTOCOL.md, "Subscribing" and "Close codes".
 */

export const SUBPROTOCOL = "synap.v1";
export const BEARER_SUBPROTOCOL = "bearer.";
export const MAX_CLIENT_TEXT_BYTES = 4 * 1024;

export const SUBSCRIBED = "synap.subscribed";
export const PRESENCE = "synap.presence";
export const TOKEN_EXPIRING = "synap.token_expiring";

/** 4000 to 4499: reconnect with the last cursor. 4500 to 4999: do not reconnect. */
export const CloseCode = {
  SLOW_CONSUMER: 4008,
  IDLE_TIMEOUT: 4009,
  DRAINING: 4012,
  RATE_LIMITED: 4029,
  TOKEN_EXPIRED: 4401,
  UNAUTHORIZED: 4501,
  FORBIDDEN: 4503,
  REVOKED: 4504,
  CONNECTION_LIMIT: 4529,
  PROTOCOL_VIOLATION: 4540,
} as const;
export type CloseCode = (typeof CloseCode)[keyof typeof CloseCode];

/** The default close reasons. */
export const CLOSE_REASONS: Record<CloseCode, string> = {
  [CloseCode.SLOW_CONSUMER]: "slow consumer: the client does not read what it is sent",
  [CloseCode.IDLE_TIMEOUT]: "idle timeout: nothing was received",
  [CloseCode.DRAINING]: "the server is draining",
  [CloseCode.RATE_LIMITED]: "rate limit: too many messages",
  [CloseCode.TOKEN_EXPIRED]: "token expired",
  [CloseCode.UNAUTHORIZED]: "invalid token",
  [CloseCode.FORBIDDEN]: "forbidden",
  [CloseCode.REVOKED]: "token revoked",
  [CloseCode.CONNECTION_LIMIT]: "connection limit: too many connections of this user",
  [CloseCode.PROTOCOL_VIOLATION]: "expected text messages of at most 4 KiB",
};

const MAX_REASON_BYTES = 123;

/** Truncate a reason to the size of a close frame (RFC 6455, section 5.5). */
export function cutReason(reason: string): string {
  const bytes = new TextEncoder().encode(reason);
  if (bytes.length <= MAX_REASON_BYTES) return reason;
  return new TextDecoder().decode(bytes.subarray(0, MAX_REASON_BYTES), { stream: true });
}

/** Format a control frame, `{"type":…,"data":{…}}`. */
export function controlFrame(type: string, data: object): string {
  return JSON.stringify({ type, data });
}

export type Action =
  | { action: "ack"; cursor: string }
  | { action: "authenticate"; token: string };

/** Parse an action of a client; undefined for any other text. */
export function parseAction(text: string): Action | undefined {
  if (!text.startsWith("{")) return undefined;
  let message: { action?: unknown; cursor?: unknown; token?: unknown };
  try {
    message = JSON.parse(text) as typeof message;
  } catch {
    return undefined;
  }
  const { action, cursor, token } = message;
  if (action === "ack" && typeof cursor === "string") return { action, cursor };
  if (action === "authenticate" && typeof token === "string") return { action, token };
  return undefined;
}
