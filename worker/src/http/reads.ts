/** The routes that read a room: its log, its connections and its users. See PROTOCOL.md, "HTTP". */

import { authorize, roomNotAllowed } from "../auth/authorization";
import { allowsRoom, UNRESTRICTED } from "../auth/claims";
import { addressOf, requestLimitsOf } from "../auth/limits";
import { badRequest, jsonResponse, parseCursorParam, parseRoomParam, textResponse } from "../messages";
import { callRoom } from "../rooms/stub";
import { authenticateCounted, type RequestContext } from "./context";

const HISTORY_LIMIT = 100;
const MAX_HISTORY_LIMIT = 1000;

export async function roomHealth(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  const claims = await authenticateCounted(context);
  if (!allowsRoom(claims, room)) throw roomNotAllowed(claims);
  const connections = await callRoom(context.env, room, (stub) => stub.connections());
  return jsonResponse(200, { status: "ok", connections, roomId: room });
}

export async function roomPresence(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  authorize(await authenticateCounted(context), "presence", room);
  const { connections, users } = await callRoom(context.env, room, (stub) => stub.presence());
  return readResponse(context, JSON.stringify({ room, connections, users }));
}

export async function history(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  authorize(await authenticateCounted(context), "subscribe", room);
  const after = context.query.get("after") ?? "earliest";
  const position = after === "earliest" ? undefined : parseCursorParam(after, "or 'earliest'");
  const limit = parseLimit(context.query.get("limit"));
  const text = await callRoom(context.env, room, (stub) => stub.history(position, limit));
  return readResponse(context, text);
}

/** Return a JSON response, and count its bytes for the caller. */
export function readResponse({ request, settings, claims }: RequestContext, text: string): Response {
  const content = new TextEncoder().encode(text);
  requestLimitsOf(settings).countRead(claims ?? UNRESTRICTED, addressOf(request), content.length);
  return textResponse(200, content, "application/json");
}

/** @throws RequestError 400. */
export function parseLimit(text: string | undefined): number {
  if (text === undefined) return HISTORY_LIMIT;
  const limit = /^[0-9]{1,4}$/.test(text) ? Number(text) : 0;
  if (limit >= 1 && limit <= MAX_HISTORY_LIMIT) return limit;
  throw badRequest("Invalid limit", `limit: expected 1 to ${MAX_HISTORY_LIMIT}`);
}
