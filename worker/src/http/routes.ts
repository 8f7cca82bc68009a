/** The HTTP routes. See PROTOCOL.md, "HTTP". */

import { authorize, requireScope, roomNotAllowed } from "../auth/authorization";
import { allowsRoom, UNRESTRICTED } from "../auth/claims";
import { addressOf, requestLimitsOf } from "../auth/limits";
import {
  badRequest, jsonResponse, methodNotAllowed, notFound, parseCursorParam, parseRoomParam, textResponse,
} from "../messages";
import { METRICS_TEXT } from "../metrics";
import openapi from "../openapi.json";
import { readinessOf } from "../readiness";
import { callRoom } from "../rooms/stub";
import { authenticateCounted, checkAnonymous, type RequestContext } from "./context";
import { broadcastMany, broadcastOne } from "./publish";
import { revokeTokens } from "./revoke";
import { openEventStream, subscribe } from "./subscribe";

const HISTORY_LIMIT = 100;
const MAX_HISTORY_LIMIT = 1000;

type Route = (context: RequestContext, segment: string) => Promise<Response>;

const ROUTES = new Map<string, [string, Route]>([
  ["health", ["GET", health]],
  ["ready", ["GET", ready]],
  ["metrics", ["GET", showMetrics]],
  ["openapi.json", ["GET", showOpenApi]],
  ["broadcast", ["POST", broadcastMany]],
  ["revoke", ["POST", revokeTokens]],
]);

/** Below `/rooms/{room}/`. */
const ROOM_ROUTES = new Map<string, [string, Route]>([
  ["broadcast", ["POST", broadcastOne]],
  ["subscribe", ["GET", subscribe]],
  ["events", ["GET", openEventStream]],
  ["history", ["GET", history]],
  ["health", ["GET", roomHealth]],
  ["presence", ["GET", roomPresence]],
]);

/** The routes of connections with many rooms, which need a server that has all rooms in one process. */
const ROOM_STREAMS = new Set(["subscribe", "events"]);

/** Handle a request. @throws RequestError the error response. */
export async function handle(context: RequestContext): Promise<Response> {
  const [method, route] = routeOf(context);
  const given = context.request.method;
  if (given !== method && !(given === "HEAD" && method === "GET")) {
    checkAnonymous(context);
    throw methodNotAllowed(method);
  }
  return route(context, context.segments[1] ?? "");
}

function routeOf(context: RequestContext): [string, Route] {
  const { segments } = context;
  const isRoom = segments.length === 3 && segments[0] === "rooms";
  const found = isRoom ? ROOM_ROUTES.get(segments[2]!) : ROUTES.get(segments.join("/"));
  if (found === undefined) {
    checkAnonymous(context);
    const isOfMany = segments.length === 1 && ROOM_STREAMS.has(segments[0]!);
    throw notFound(
      isOfMany
        ? `each connection has one room here: open /rooms/{room}/${segments[0]!}`
        : "see PROTOCOL.md, 'HTTP', for the routes",
    );
  }
  return found;
}

async function health(context: RequestContext): Promise<Response> {
  checkAnonymous(context);
  return jsonResponse(200, { status: "ok" });
}

async function ready(context: RequestContext): Promise<Response> {
  checkAnonymous(context);
  await readinessOf(context.env).check();
  return jsonResponse(200, { status: "ready" });
}

async function showOpenApi(context: RequestContext): Promise<Response> {
  checkAnonymous(context);
  return jsonResponse(200, openapi);
}

async function showMetrics(context: RequestContext): Promise<Response> {
  requireScope(await authenticateCounted(context), "metrics", "admin");
  return textResponse(200, METRICS_TEXT, "text/plain; version=0.0.4; charset=utf-8");
}

async function roomHealth(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  const claims = await authenticateCounted(context);
  if (!allowsRoom(claims, room)) throw roomNotAllowed(claims);
  const connections = await callRoom(context.env, room, (stub) => stub.connections());
  return jsonResponse(200, { status: "ok", connections, roomId: room });
}

async function roomPresence(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  authorize(await authenticateCounted(context), "presence", room);
  const { connections, users } = await callRoom(context.env, room, (stub) => stub.presence());
  return readResponse(context, JSON.stringify({ room, connections, users }));
}

async function history(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  authorize(await authenticateCounted(context), "subscribe", room);
  const after = context.query.get("after") ?? "earliest";
  const position = after === "earliest" ? undefined : parseCursorParam(after, "or 'earliest'");
  const limit = parseLimit(context.query.get("limit"));
  const text = await callRoom(context.env, room, (stub) => stub.history(position, limit));
  return readResponse(context, text);
}

/** Return a JSON response, and count its bytes for the caller. */
function readResponse({ request, settings, claims }: RequestContext, text: string): Response {
  const content = new TextEncoder().encode(text);
  requestLimitsOf(settings).countRead(claims ?? UNRESTRICTED, addressOf(request), content.length);
  return textResponse(200, content, "application/json");
}

function parseLimit(text: string | undefined): number {
  if (text === undefined) return HISTORY_LIMIT;
  const limit = /^[0-9]{1,4}$/.test(text) ? Number(text) : 0;
  if (limit >= 1 && limit <= MAX_HISTORY_LIMIT) return limit;
  throw badRequest("Invalid limit", `limit: expected 1 to ${MAX_HISTORY_LIMIT}`);
}
