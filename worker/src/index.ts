/** The room server as a Cloudflare Worker. See PROTOCOL.md, and docs/cloudflare.md. */

import { checkOrigin } from "./auth/authorization";
import { handle, checkAnonymous, type RequestContext } from "./http/routes";
import { misconfigured, RequestError, parseTarget, unavailable } from "./messages";
import { addressOf, requestLimitsOf } from "./auth/limits";
import { count } from "./metrics";
import { cutReason } from "./protocol/control";
import { logRefusal } from "./events";
import { ConfigurationError, settingsOf } from "./settings";
import { openEventStream, openWebSocket } from "./http/subscribe";

export { ConnectionRegistry } from "./auth/registry";
export { NotificationRoom } from "./rooms/room";

const PREFLIGHT: Record<string, string> = {
  "Access-Control-Allow-Methods": "GET, POST",
  "Access-Control-Allow-Headers": "authorization, content-type, last-event-id",
  "Access-Control-Max-Age": "600",
};

export default {
  async fetch(request, env): Promise<Response> {
    let cors: Record<string, string> = {};
    let context: RequestContext | undefined;
    try {
      const settings = settingsOf(env);
      checkOrigin(request, settings);
      cors = corsHeaders(request);
      context = { ...parseTarget(request.url), request, env, settings };
      if (request.method === "OPTIONS" && request.headers.has("Access-Control-Request-Method")) {
        checkAnonymous(context);
        const headers = { "Cache-Control": "no-store", ...cors, ...preflightHeaders(request) };
        return new Response(null, { status: 204, headers });
      }
      return withHeaders(await respond(context), cors);
    } catch (error) {
      const problem = toRequestError(error);
      // The allowed origins are unknown, and the message contains no secret, so every page may read it.
      if (error instanceof ConfigurationError) cors = corsHeaders(request);
      count(env, "error", problem.body.code);
      if (context?.claims !== undefined && problem.status !== 429 && problem.status !== 503) {
        requestLimitsOf(context.settings).countRefusal(context.claims, addressOf(request));
      }
      logRefusal(request, problem.body, { claims: context?.claims, user: problem.rejectedUser });
      if (error instanceof ConfigurationError && isBrowserHandshake(request)) return acceptAndClose(problem);
      return withHeaders(problem.response, cors);
    }
  },
} satisfies ExportedHandler<Env>;

async function respond(context: RequestContext): Promise<Response> {
  const [kind, , route] = context.segments;
  if (kind === "rooms" && context.segments.length === 3) {
    if (route === "events") return openEventStream(context);
    const isUpgrade = context.request.headers.get("Upgrade")?.toLowerCase() === "websocket";
    if (route === "subscribe" && isUpgrade && context.request.method === "GET") {
      return openWebSocket(context);
    }
  }
  return handle(context);
}

/** Convert any error to an error response that reveals no internals. */
function toRequestError(error: unknown): RequestError {
  if (error instanceof RequestError) return error;
  if (error instanceof ConfigurationError) return misconfigured(error.message); // logRefusal logs it
  console.error(error);
  return unavailable("internal error: see the Worker's log");
}

/**
 * Return the CORS header fields that let a page of an allowed origin read the response. Credentials are allowed
 * because `EventSource` polyfills send them (`withCredentials`). That grants nothing, since the server uses no
 * cookies.
 */
function corsHeaders(request: Request): Record<string, string> {
  const origin = request.headers.get("Origin");
  return origin === null
    ? {}
    : { "Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true", Vary: "origin" };
}

/** A comma-separated list of header field names (RFC 9110, section 5.6.2). */
const FIELD_NAMES = /^[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*$/;
const MAX_FIELD_NAMES = 1024;

/**
 * Return the preflight header fields, which allow every requested header field (Fetch standard, "CORS protocol").
 * Polyfills add `Cache-Control`, and tracing adds `traceparent`; `*` would not include `Authorization`.
 */
function preflightHeaders(request: Request): Record<string, string> {
  const names = request.headers.get("Access-Control-Request-Headers") ?? "";
  if (names.length > MAX_FIELD_NAMES || !FIELD_NAMES.test(names)) return PREFLIGHT;
  return { ...PREFLIGHT, "Access-Control-Allow-Headers": names };
}

/** Whether a page opens a WebSocket. A page cannot read the response to a handshake, but can read a close reason. */
function isBrowserHandshake({ headers }: Request): boolean {
  return headers.has("Origin") && headers.get("Upgrade")?.toLowerCase() === "websocket";
}

const INTERNAL_ERROR = 1011; // RFC 6455, section 7.4.1. Clients reconnect, with increasing delays

/** Accept a WebSocket only to close it, with the error as the close reason. */
function acceptAndClose({ body }: RequestError): Response {
  const [client, server] = Object.values(new WebSocketPair()) as [WebSocket, WebSocket];
  server.accept();
  server.close(INTERNAL_ERROR, cutReason(`${body.error}: ${body.details}`));
  return new Response(null, { status: 101, webSocket: client });
}

function withHeaders(response: Response, headers: Record<string, string>): Response {
  if (response.webSocket === null) {
    for (const [name, value] of Object.entries(headers)) response.headers.set(name, value);
  }
  return response;
}
