/** The wire format for subscribers. See PROTOCOL.md, "Subscribing" and "Clients". */

/** A delivered notification. `types.ts` defines `data` for each `type`. */
export interface Delivered {
  type: string;
  data: Record<string, unknown>;
  id?: string;
  status?: "pending" | "success" | "error";
  requestId?: string;
  timestamp?: string;
  room?: string;
  cursor?: string;
  /** See PROTOCOL.md, "Folding". */
  fold?: { offset?: number };
  /** See PROTOCOL.md, "Job state". */
  job?: { event: string; name: string; runId: string; userId?: string; attempt?: number };
}

/** `{"type":"synap.…","data":{…}}`: a message of the server about the connection itself. */
export interface ControlFrame {
  control: string;
  data: Record<string, unknown>;
}

export interface PresentUser {
  user: string;
  connections: number;
  devices: string[];
}

/** The data of `synap.presence`. See PROTOCOL.md, "Presence". */
export type Presence =
  | { event: "state"; users: PresentUser[] }
  | ({ event: "join" | "leave" | "update" } & PresentUser);

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Parse a message; undefined if this version does not know its format. */
export function read(text: unknown): Delivered | ControlFrame | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text as string);
  } catch {
    return undefined;
  }
  if (!isObject(value) || typeof value.type !== "string" || !isObject(value.data)) return undefined;
  if (value.type.startsWith("synap.")) return { control: value.type, data: value.data };
  return value as unknown as Delivered;
}

/** The close codes that the client handles. See PROTOCOL.md, "Close codes". */
export const TOKEN_EXPIRED = 4401;
export const UNAUTHORIZED = 4501;

/** Why a connection could not be opened, or ended. */
export interface Failure {
  reason: string;
  /** A close code, or the HTTP status of a rejected request. */
  code?: number;
  /** The client must not reconnect. */
  isFinal?: boolean;
  /** The delay that a draining server asked for. */
  retryAfterMs?: number | undefined;
  /** The server did not answer. */
  isTimeout?: boolean;
  /** From 0 to 1: the random part of the delay, where several subscriptions wait for the same connection. */
  jitter?: number;
  /** The connection with many rooms was open. */
  wasOpen?: boolean;
  /** The token of the attempt. */
  token?: string | undefined;
}

/** Whether a close code or an HTTP status means that the token was rejected. */
export const isUnauthorized = (code?: number): boolean => code === UNAUTHORIZED || code === 401;

/** Whether an HTTP status means that a retry of the request would be rejected, too. */
export const isFinalStatus = (status: number): boolean => /^4(?!08|25|29)/.test(`${status}`);
