/** HTTP requests, responses and errors. See PROTOCOL.md, "HTTP". */

import { cutReason } from "./protocol/control";
import { parseCursor, type Cursor } from "./protocol/cursor";
import { JsonError, parseJson } from "./protocol/json";
import { MAX_BATCH_BYTES } from "./protocol/notification";
import { DEVICE_PROBLEM, isDevice, problemWithRoom } from "./protocol/rooms";
import type { Conflict } from "./stores/folds";

/** The largest request body of any route. */
const MAX_BODY_BYTES = MAX_BATCH_BYTES;
/**
 * A larger body is read and discarded up to this size, because a client that is cut off while sending cannot read
 * the error.
 */
const MAX_PASSED_OVER_BYTES = 16 * MAX_BODY_BYTES;
const BODY_TIMEOUT_S = 20;
const RETRY_AFTER_S = 1;

export interface Problem {
  error: string;
  details: string;
  code: string;
  /** For a conflict of a notification with `fold`: where the next piece has to begin, and the attempt of the key. */
  offset?: number;
  attempt?: number;
}

/** An error response to a request. See PROTOCOL.md, "Errors". */
export class RequestError extends Error {
  readonly body: Problem;
  /** The user of an invalid token with a valid signature, for the log. */
  rejectedUser?: string | undefined;

  constructor(
    readonly status: number,
    code: string,
    error: string,
    details: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(error);
    this.body = { error, details, code };
  }

  get response(): Response {
    return jsonResponse(this.status, this.body, this.headers);
  }
}

/** The longest path and query together, in bytes. */
const MAX_TARGET_BYTES = 8 * 1024;

/** The most parameters in a query. */
const MAX_QUERY_FIELDS = 32;

export function badRequest(error: string, details: string): RequestError {
  return new RequestError(400, "invalid_request", error, details);
}

/** RFC 6750, section 3. */
export function unauthorized(details: string, invalid = false): RequestError {
  const challenge = invalid ? 'Bearer error="invalid_token"' : "Bearer";
  return new RequestError(401, "unauthorized", "Unauthorized", details, {
    "WWW-Authenticate": challenge,
  });
}

export function forbidden(details: string, error = "Forbidden"): RequestError {
  return new RequestError(403, "forbidden", error, details);
}

export function payloadTooLarge(details: string): RequestError {
  return new RequestError(413, "payload_too_large", "Too large", details);
}

/** Return the error of a notification that does not fit what the log has for its key. */
export function conflictError({ code, details, offset, attempt }: Conflict): RequestError {
  if (code === "payload_too_large") return payloadTooLarge(details);
  const error = new RequestError(409, code, "Conflict", details);
  if (offset !== undefined) error.body.offset = offset;
  if (attempt !== undefined) error.body.attempt = attempt;
  return error;
}

/** @param waitS seconds until the request can be retried. */
export function rateLimited(details: string, waitS: number): RequestError {
  return new RequestError(429, "rate_limited", "Too many requests", details, {
    "Retry-After": String(Math.max(1, Math.ceil(waitS))),
  });
}

export function unavailable(details: string): RequestError {
  return new RequestError(503, "unavailable", "Try again later", details, {
    "Retry-After": String(RETRY_AFTER_S),
  });
}

/** No `Retry-After`: only the operator can fix it. See PROTOCOL.md, "Errors". */
export function misconfigured(details: string): RequestError {
  return new RequestError(500, "misconfigured", "The server's settings are wrong", details);
}

export function methodNotAllowed(right: string): RequestError {
  return new RequestError(
    405,
    "method_not_allowed",
    "Method not allowed",
    `this route takes ${right}`,
    { Allow: right },
  );
}

export function notFound(details: string): RequestError {
  return new RequestError(404, "not_found", "Not found", details);
}

export function jsonResponse(
  status: number,
  body: unknown,
  headers: Record<string, string> = {},
): Response {
  return textResponse(status, JSON.stringify(body), "application/json", headers);
}

export function textResponse(
  status: number,
  content: BodyInit,
  contentType: string,
  headers: Record<string, string> = {},
): Response {
  return new Response(content, {
    status,
    headers: { "Cache-Control": "no-store", "Content-Type": contentType, ...headers },
  });
}

export function isWebSocketHandshake({ headers }: Request): boolean {
  return headers.get("Upgrade")?.toLowerCase() === "websocket";
}

/** Accept a WebSocket only to close it: a page cannot read an error response to its handshake. */
export function closedWebSocket(code: number, reason: string, subprotocol?: string): Response {
  const pair = new WebSocketPair();
  pair[1].accept();
  pair[1].close(code, cutReason(reason));
  return new Response(null, {
    status: 101,
    webSocket: pair[0],
    ...(subprotocol === undefined ? {} : { headers: { "Sec-WebSocket-Protocol": subprotocol } }),
  });
}

/** The decoded path segments, and the query parameters. The last of repeated ones wins; empty ones are dropped. */
export interface Target {
  segments: string[];
  query: Map<string, string>;
}

/**
 * Parse the path and the query of a URL. `%2F` does not separate segments.
 *
 * @throws RequestError 400 for an invalid percent-encoding; 414.
 */
export function parseTarget(url: string): Target {
  const [, raw = "", search = ""] = /^[^:]+:\/\/[^/?#]*([^?#]*)\??([^#]*)/.exec(url) ?? [];
  if (raw.length + search.length >= MAX_TARGET_BYTES) {
    const details = `a path and its query have at most ${MAX_TARGET_BYTES} bytes`;
    throw new RequestError(414, "payload_too_large", "URI too long", details);
  }
  if (search.split("&").length > MAX_QUERY_FIELDS) {
    const details = `a query has at most ${MAX_QUERY_FIELDS} parameters`;
    throw badRequest("Invalid query", details);
  }
  const query = new Map<string, string>();
  for (const [name, value] of new URLSearchParams(search)) {
    if (value !== "") query.set(name, value);
  }
  try {
    const segments = raw.replace(/^\/+|\/+$/g, "").split("/").map(decodeURIComponent);
    return { segments, query };
  } catch {
    throw badRequest("Invalid path", "the percent-encoded bytes are not UTF-8");
  }
}

/**
 * Parse the room in a path.
 *
 * @throws RequestError 400.
 */
export function parseRoomParam(segment: string): string {
  const problem = problemWithRoom(segment);
  if (problem !== undefined) throw badRequest("Invalid room id", problem);
  return segment;
}

/**
 * Parse the cursor in a query.
 *
 * @param words the alternatives to a cursor, for the error message.
 * @throws RequestError 400.
 */
export function parseCursorParam(text: string, words = "'earliest' or 'latest'"): Cursor {
  const cursor = parseCursor(text);
  if (!cursor) throw badRequest("Invalid cursor", `after: expected a cursor, ${words}`);
  return cursor;
}

/**
 * Parse the name of the user's device.
 *
 * @throws RequestError 400.
 */
export function parseDeviceParam(query: Map<string, string>): string | undefined {
  const name = query.get("device");
  if (name !== undefined && !isDevice(name)) {
    throw badRequest("Invalid device", `device: ${DEVICE_PROBLEM}`);
  }
  return name;
}

/**
 * Read and parse a JSON body strictly: no NaN, no lone surrogates, bounded depth.
 *
 * @throws RequestError 400, 408, 413 or 415.
 */
export async function readJsonBody(request: Request): Promise<unknown> {
  const coding = request.headers.get("Content-Encoding")?.trim().toLowerCase() ?? "";
  if (coding !== "" && coding !== "identity") {
    throw new RequestError(
      415,
      "unsupported_media_type",
      "Unsupported content coding",
      "send the body without Content-Encoding",
      { "Accept-Encoding": "identity" },
    );
  }
  const contentType = request.headers.get("Content-Type");
  if (contentType !== null) {
    const media = contentType.split(";")[0]!.trim().toLowerCase();
    if (media !== "application/json" && !media.endsWith("+json")) {
      throw new RequestError(
        415,
        "unsupported_media_type",
        "Unsupported media type",
        "send Content-Type: application/json",
      );
    }
  }
  try {
    return parseJson(await readBody(request));
  } catch (error) {
    if (error instanceof JsonError) throw badRequest("Invalid JSON", error.message);
    throw error;
  }
}

async function readBody(request: Request): Promise<Uint8Array> {
  const declared = Number(request.headers.get("Content-Length") ?? 0);
  if (declared > MAX_PASSED_OVER_BYTES) throw bodyTooLarge();
  if (request.body === null) return new Uint8Array();
  const reader = request.body.getReader();
  let timer: ReturnType<typeof setTimeout> | null = null;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const details = `a body has to arrive within ${BODY_TIMEOUT_S} s`;
      reject(new RequestError(408, "request_timeout", "Too slow", details));
    }, BODY_TIMEOUT_S * 1000);
  });
  try {
    const chunks: Uint8Array[] = [];
    let size = 0;
    for (;;) {
      const { done, value } = await Promise.race([reader.read(), late]);
      if (done && size > MAX_BODY_BYTES) throw bodyTooLarge();
      if (done) return concatenate(chunks, size);
      size += value.length;
      if (size > MAX_PASSED_OVER_BYTES) throw bodyTooLarge();
      if (size <= MAX_BODY_BYTES) chunks.push(value);
    }
  } finally {
    clearTimeout(timer);
  }
}

function concatenate(chunks: Uint8Array[], size: number): Uint8Array {
  const whole = new Uint8Array(size);
  let place = 0;
  for (const chunk of chunks) {
    whole.set(chunk, place);
    place += chunk.length;
  }
  return whole;
}

function bodyTooLarge(): RequestError {
  return payloadTooLarge(`a body has at most ${MAX_BODY_BYTES} bytes`);
}
