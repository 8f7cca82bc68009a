/** From a handshake to a room's connection. See PROTOCOL.md, "Subscribing". */

import { credentialOf, authenticate, authorize, rejectRevoked } from "./access";
import { stubOf, type RequestContext } from "./api";
import { ANYONE, type Claims } from "./auth/claims";
import { isCredential } from "./auth/verify";
import type { SubscribeRequest } from "./connection";
import { eventStream, EVENT_STREAM_HEADERS } from "./sse";
import { parseDeviceParam, badRequest, methodNotAllowed, parseCursorParam, RequestError, parseRoomParam, unavailable } from "./http";
import { addressOf, requestLimitsOf } from "./limits";
import { count } from "./metrics";
import { BEARER_SUBPROTOCOL, CloseCode, cutReason, SUBPROTOCOL } from "./protocol/control";
import { parseCursor } from "./protocol/cursor";
import { roomOwner } from "./protocol/rooms";
import { logRefusal } from "./refusals";
import { CLOSE_CODE, SUBSCRIBING } from "./room";
import { hasKeys, type Settings } from "./settings";

/** What a subscriber asks for: the room, the position, the device, and whether to hear who comes. */
interface SubscribeParams {
  room: string;
  after?: string;
  device?: string;
  wantsPresence: boolean;
}

/**
 * Open a WebSocket, or close it at once with a code.
 *
 * @throws RequestError it is refused.
 */
export async function openWebSocket(asked: RequestContext): Promise<Response> {
  const { request, query } = asked;
  const offered = subprotocolsOf(request);
  const wanted = wantedOf(asked);
  const controlFrames = offered.includes(SUBPROTOCOL);
  if (wanted.wantsPresence && !controlFrames) {
    throw badRequest("Nothing could be told", "presence: offer the subprotocol synap.v1");
  }
  // Ours, else the one with the token, because a browser wants one of those that it has offered.
  const bearer = offered.find((name) => name.startsWith(BEARER_SUBPROTOCOL));
  const subprotocol = controlFrames ? SUBPROTOCOL : bearer;
  try {
    const credential = credentialOf(request.headers, query, offered);
    const claims = await counted(asked, credential);
    const how = { transport: "websocket" as const, controlFrames, isLost: false };
    const answer = await ask(asked, claims, {
      ...how,
      ...(subprotocol === undefined ? {} : { subprotocol }),
    }, wanted);
    const closeCode = answer.headers.get(CLOSE_CODE);
    if (closeCode !== null) {
      const { details } = (await errorOf(answer)).body;
      return closeAtOnce(asked, Number(closeCode), details, subprotocol);
    }
    if (answer.status === 101) return answer;
    throw await errorOf(answer);
  } catch (error) {
    // A page cannot read the answer to a handshake, but it can read a close code.
    const code = error instanceof RequestError ? CODES[error.status] : undefined;
    if (code === undefined || !request.headers.has("Origin")) throw error;
    const { body, rejectedUser } = error as RequestError;
    return closeAtOnce(asked, code, body.details, subprotocol, rejectedUser);
  }
}

const CODES: Record<number, CloseCode> = { 401: CloseCode.UNAUTHORIZED, 403: CloseCode.FORBIDDEN };

const NAMES: Record<number, string> = {
  [CloseCode.UNAUTHORIZED]: "unauthorized",
  [CloseCode.FORBIDDEN]: "forbidden",
  [CloseCode.CONNECTION_LIMIT]: "connection_limit",
};

/**
 * Answer with an event stream.
 *
 * @throws RequestError it is refused.
 */
export async function openEventStream(asked: RequestContext): Promise<Response> {
  const { request, query } = asked;
  if (request.method !== "GET" && request.method !== "HEAD") throw methodNotAllowed("GET");
  // A browser cannot choose what it sends here, so junk is a lost position, not a 400.
  const last = request.headers.get("Last-Event-ID") || undefined;
  const isLost = last !== undefined && parseCursor(last) === undefined;
  if (last !== undefined) query.set("after", isLost ? "earliest" : last);
  const wanted = wantedOf(asked);
  const claims = await counted(asked, credentialOf(request.headers, query, []));
  if (request.method === "HEAD") {
    await rejectRevoked(asked.env, claims);
    permitAll(claims, wanted);
    return new Response(null, { headers: EVENT_STREAM_HEADERS });
  }
  const answer = await ask(asked, claims, { transport: "sse", controlFrames: true, isLost }, wanted);
  const room = answer.webSocket;
  if (room === null) throw await errorOf(answer);
  return new Response(eventStream(room, request.signal), { headers: EVENT_STREAM_HEADERS });
}

/** What the credential says, if it counts; the handshake counts for its caller. */
async function counted(asked: RequestContext, credential: string | undefined): Promise<Claims> {
  const { request, settings } = asked;
  const address = addressOf(request);
  const claims = await authenticate(settings, credential, address);
  asked.claims = claims;
  requestLimitsOf(settings).checkRequest(claims, address);
  return claims;
}

/** Ask the room, after everything that can be seen without it. */
async function ask(
  { env, settings }: RequestContext,
  claims: Claims,
  how: Pick<SubscribeRequest, "transport" | "controlFrames" | "isLost" | "subprotocol">,
  wanted: SubscribeParams,
): Promise<Response> {
  permitAll(claims, wanted);
  const { room, ...rest } = wanted;
  await refuseCredential(settings, "room", room.slice(room.indexOf("_") + 1));
  await refuseCredential(settings, "device", wanted.device);
  // Without keys nobody says who they are: in a user's room it is that user.
  const presentAs = claims === ANYONE ? roomOwner(room) : claims.user;
  // The room has no use for the other rooms that a token opens, and they may be many.
  const asking: SubscribeRequest = {
    ...how,
    ...rest,
    ...(presentAs === undefined ? {} : { presentAs }),
    claims: { ...claims, rooms: [] },
  };
  try {
    return await stubOf(env, room).fetch("https://room/", {
      headers: { Upgrade: "websocket", [SUBSCRIBING]: encodeURIComponent(JSON.stringify(asking)) },
    });
  } catch (error) {
    console.error(`a room's object could not be asked: ${String(error)}`);
    throw unavailable("the room cannot be reached now");
  }
}

/**
 * Refuse a room or a device that is a credential, which presence would show to others.
 *
 * @throws RequestError 400.
 */
async function refuseCredential(settings: Settings, name: string, text?: string): Promise<void> {
  if (text === undefined || !hasKeys(settings) || !(await isCredential(settings, text))) return;
  const details = `${name}: this is a credential; send it as Authorization: Bearer …`;
  throw badRequest("A credential in a wrong place", details);
}

function permitAll(claims: Claims, { room, wantsPresence }: SubscribeParams): void {
  authorize(claims, "subscribe", room);
  if (wantsPresence) authorize(claims, "presence", room);
}

function wantedOf({ segments, query }: RequestContext): SubscribeParams {
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

function subprotocolsOf(request: Request): string[] {
  const header = request.headers.get("Sec-WebSocket-Protocol") ?? "";
  return header.split(",").map((name) => name.trim()).filter(Boolean);
}

function closeAtOnce(
  { env, request, claims }: RequestContext,
  code: number,
  reason: string,
  subprotocol: string | undefined,
  user?: string,
): Response {
  const pair = new WebSocketPair();
  pair[1].accept();
  pair[1].close(code, cutReason(reason));
  count(env, "disconnect", String(code));
  const problem = { error: "", code: NAMES[code] ?? String(code), details: reason };
  logRefusal(request, problem, { claims, user, closeCode: code });
  return new Response(null, {
    status: 101,
    webSocket: pair[0],
    ...(subprotocol === undefined ? {} : { headers: { "Sec-WebSocket-Protocol": subprotocol } }),
  });
}

/** A room's refusal, as our own. */
async function errorOf(answer: Response): Promise<RequestError> {
  const { code, error, details } = await answer.json<Record<"code" | "error" | "details", string>>();
  const headers: Record<string, string> = {};
  for (const name of ["Retry-After", "WWW-Authenticate"]) {
    const value = answer.headers.get(name);
    if (value !== null) headers[name] = value;
  }
  return new RequestError(answer.status, code, error, details, headers);
}
