/** The HTTP routes. See PROTOCOL.md, "HTTP". */

import { requireScope } from "../auth/authorization";
import { jsonResponse, methodNotAllowed, notFound, textResponse } from "../messages";
import { METRICS_TEXT } from "../metrics";
import openapi from "../openapi.json";
import { readinessOf } from "../readiness";
import { authenticateCounted, checkAnonymous, type RequestContext } from "./context";
import { listJobs, readJob } from "./jobs";
import { broadcastMany, broadcastOne } from "./publish";
import { history, roomHealth, roomPresence } from "./reads";
import { revokeTokens } from "./revoke";
import { openEventStream, subscribe } from "./subscribe";

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
  const found = find(segments);
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

function find(segments: string[]): [string, Route] | undefined {
  const [first, , last] = segments;
  if (segments.length === 3 && first === "rooms") return ROOM_ROUTES.get(last!);
  if (segments.length === 3 && first === "users" && last === "jobs") return ["GET", listJobs];
  if (segments.length === 2 && first === "jobs") return ["GET", readJob];
  return ROUTES.get(segments.join("/"));
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
