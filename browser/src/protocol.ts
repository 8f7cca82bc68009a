/** The contract as a listener sees it. See PROTOCOL.md, "Subscribing" and "Clients". */

/** What is delivered; `types.ts` says what `data` holds for each `type`. */
export interface Delivered {
  type: string;
  data: Record<string, unknown>;
  id?: string;
  status?: "pending" | "success" | "error";
  requestId?: string;
  timestamp?: string;
  room?: string;
  cursor?: string;
}

/** `{"type":"synap.…","data":{…}}`: what a server says of the connection itself. */
export interface ControlFrame {
  control: string;
  data: Record<string, unknown>;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** What a message says; undefined if it is nothing that this version knows. */
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

/** Why there is no connection, or no longer one. */
export interface Failure {
  reason: string;
  /** A close code, or the status of a refused request. */
  code?: number;
  /** The server said not to come back. */
  isFinal?: boolean;
  /** The pause that a draining server asked for. */
  retryAfterMs?: number;
}

/** Whether a status of a refused request means that it will be refused again. */
export const isFinalStatus = (status: number): boolean =>
  status >= 400 && status < 500 && status !== 408 && status !== 425 && status !== 429;
