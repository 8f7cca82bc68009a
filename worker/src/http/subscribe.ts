/** Handshakes of WebSockets and event streams. See PROTOCOL.md, "Subscribing". */

import { authenticate, authorize, credentialOf, rejectRevoked } from "../auth/authorization";
import { UNRESTRICTED, type Claims } from "../auth/claims";
import { addressOf, requestLimitsOf } from "../auth/limits";
import { isCredential } from "../auth/tokens";
import { logRejected } from "../events";
import {
  badRequest, closedWebSocket, isWebSocketHandshake, parseCursorParam, parseDeviceParam, parseRoomParam, RequestError,
} from "../messages";
import { count } from "../metrics";
import { BEARER_SUBPROTOCOL, CloseCode, SUBPROTOCOL } from "../protocol/control";
import { parseCursor } from "../protocol/cursor";
import { roomOwner } from "../protocol/rooms";
import { CLOSE_CODE, subscribeToRoom, type SubscribeRequest } from "../rooms/stub";
import { hasKeys, type Settings } from "../settings";
import type { RequestContext } from "./context";
import { eventStream, EVENT_STREAM_HEADERS } from "./sse";

/** The parameters of a handshake. */
interface SubscribeParams {
  room: string;
  after?: string;
  device?: string;
  wantsPresence: boolean;
}

/** `GET /rooms/{room}/subscribe`. @throws RequestError 426 if the request is no WebSocket handshake. */
export async function subscribe(context: RequestContext, segment: string): Promise<Response> {
  const { request } = context;
  if (request.method === "GET" && isWebSocketHandshake(request)) return openWebSocket(context);
  parseRoomParam(segment);
  throw new RequestError(
    426,
    "upgrade_required",
    "Expected WebSocket upgrade",
    "open this address as a WebSocket, ws:// or wss://",
    { Upgrade: "websocket", Connection: "Upgrade" },
  );
}

/**
 * Open a WebSocket. For a page, a rejected one is accepted and closed with a code.
 *
 * @throws RequestError the handshake is rejected.
 */
async function openWebSocket(context: RequestContext): Promise<Response> {
  const { request, query } = context;
  const offered = parseSubprotocols(request);
  const params = parseSubscribeParams(context);
  const controlFrames = offered.includes(SUBPROTOCOL);
  if (params.wantsPresence && !controlFrames) {
    throw badRequest("Presence requires subprotocol synap.v1", "presence: offer the subprotocol synap.v1");
  }
  // A browser requires one of the subprotocols that it has offered: ours, else the one with the token.
  const bearer = offered.find((name) => name.startsWith(BEARER_SUBPROTOCOL));
  const subprotocol = controlFrames ? SUBPROTOCOL : bearer;
  try {
    const credential = credentialOf(request.headers, query, offered);
    const claims = await authenticateHandshake(context, credential);
    const connection = { transport: "websocket" as const, controlFrames, isLost: false };
    const response = await openRoomSocket(context, claims, {
      ...connection,
      ...(subprotocol === undefined ? {} : { subprotocol }),
    }, params);
    const closeCode = response.headers.get(CLOSE_CODE);
    if (closeCode !== null) {
      const { details } = (await parseRoomError(response)).body;
      return acceptAndClose(context, Number(closeCode), details, subprotocol);
    }
    if (response.status === 101) return response;
    throw await parseRoomError(response);
  } catch (error) {
    // A page cannot read the response to a handshake, but it can read a close code.
    const code = error instanceof RequestError ? CLOSE_CODES[error.status] : undefined;
    if (code === undefined || !request.headers.has("Origin")) throw error;
    const { body, rejectedUser } = error as RequestError;
    return acceptAndClose(context, code, body.details, subprotocol, rejectedUser);
  }
}

const CLOSE_CODES: Record<number, CloseCode> = { 401: CloseCode.UNAUTHORIZED, 403: CloseCode.FORBIDDEN };

const ERROR_CODES: Record<number, string> = {
  [CloseCode.UNAUTHORIZED]: "unauthorized",
  [CloseCode.FORBIDDEN]: "forbidden",
  [CloseCode.CONNECTION_LIMIT]: "connection_limit",
};

/**
 * `GET /rooms/{room}/events`: open an event stream.
 *
 * @throws RequestError the handshake is rejected.
 */
export async function openEventStream(context: RequestContext): Promise<Response> {
  const { request, query } = context;
  // A browser sends the last id that it has received, so an invalid one is a lost position, not an error.
  const last = request.headers.get("Last-Event-ID") || undefined;
  const isLost = last !== undefined && parseCursor(last) === undefined;
  if (last !== undefined) query.set("after", isLost ? "earliest" : last);
  const params = parseSubscribeParams(context);
  const claims = await authenticateHandshake(context, credentialOf(request.headers, query, []));
  if (request.method === "HEAD") {
    await rejectRevoked(context.env, claims);
    authorizeAll(claims, params);
    return new Response(null, { headers: EVENT_STREAM_HEADERS });
  }
  const response = await openRoomSocket(context, claims, { transport: "sse", controlFrames: true, isLost }, params);
  const room = response.webSocket;
  if (room === null) throw await parseRoomError(response);
  return new Response(eventStream(room, request.signal), { headers: EVENT_STREAM_HEADERS });
}

/** Authenticate a handshake, and count it for its caller. */
async function authenticateHandshake(context: RequestContext, credential: string | undefined): Promise<Claims> {
  const { request, settings } = context;
  const address = addressOf(request);
  const claims = await authenticate(settings, credential, address);
  context.claims = claims;
  requestLimitsOf(settings).checkRequest(claims, address);
  return claims;
}

/** Open a WebSocket to the room, after all checks that do not need the room. */
async function openRoomSocket(
  { env, settings }: RequestContext,
  claims: Claims,
  connection: Pick<SubscribeRequest, "transport" | "controlFrames" | "isLost" | "subprotocol">,
  params: SubscribeParams,
): Promise<Response> {
  authorizeAll(claims, params);
  const { room, ...rest } = params;
  await rejectCredential(settings, "room", room.slice(room.indexOf("_") + 1));
  await rejectCredential(settings, "device", params.device);
  // Without keys nothing identifies the client: in a user's room it counts as that user.
  const presentAs = claims === UNRESTRICTED ? roomOwner(room) : claims.user;
  // Omit the patterns of the token: the room does not need them, and there may be many.
  const subscribeRequest: SubscribeRequest = {
    ...connection,
    ...rest,
    ...(presentAs === undefined ? {} : { presentAs }),
    claims: { ...claims, rooms: [] },
  };
  return subscribeToRoom(env, room, subscribeRequest);
}

/**
 * Reject a credential in place of a room or a device, because presence would publish it.
 *
 * @throws RequestError 400.
 */
async function rejectCredential(settings: Settings, name: string, text?: string): Promise<void> {
  if (text === undefined || !hasKeys(settings) || !(await isCredential(settings, text))) return;
  const details = `${name}: this is a credential; send it as Authorization: Bearer …`;
  throw badRequest("Credential in the wrong place", details);
}

function authorizeAll(claims: Claims, { room, wantsPresence }: SubscribeParams): void {
  authorize(claims, "subscribe", room);
  if (wantsPresence) authorize(claims, "presence", room);
}

function parseSubscribeParams({ segments, query }: RequestContext): SubscribeParams {
  const room = parseRoomParam(segments[1] ?? "");
  const after = query.get("after");
  if (after !== undefined && after !== "earliest" && after !== "latest") parseCursorParam(after);
  const presence = query.get("presence") ?? "0";
  if (presence !== "0" && presence !== "1") {
    throw badRequest("Invalid presence", "presence: expected 0 or 1");
  }
  const device = parseDeviceParam(query);
  return {
    room,
    wantsPresence: presence === "1",
    ...(after === undefined ? {} : { after }),
    ...(device === undefined ? {} : { device }),
  };
}

function parseSubprotocols(request: Request): string[] {
  const header = request.headers.get("Sec-WebSocket-Protocol") ?? "";
  return header.split(",").map((name) => name.trim()).filter(Boolean);
}

function acceptAndClose(
  { env, request, claims }: RequestContext,
  code: number,
  reason: string,
  subprotocol: string | undefined,
  user?: string,
): Response {
  count(env, "disconnect", String(code));
  const problem = { error: "", code: ERROR_CODES[code] ?? String(code), details: reason };
  logRejected(request, problem, { claims, user, closeCode: code });
  return closedWebSocket(code, reason, subprotocol);
}

/** Convert a room's error response to a RequestError. */
async function parseRoomError(response: Response): Promise<RequestError> {
  const { code, error, details } = await response.json<Record<"code" | "error" | "details", string>>();
  const headers: Record<string, string> = {};
  for (const name of ["Retry-After", "WWW-Authenticate"]) {
    const value = response.headers.get(name);
    if (value !== null) headers[name] = value;
  }
  return new RequestError(response.status, code, error, details, headers);
}
