/** The room server as a Cloudflare Worker. See PROTOCOL.md, and docs/cloudflare.md. */

import { checkOrigin } from "./auth/authorization";
import { addressOf, requestLimitsOf } from "./auth/limits";
import { logRejected } from "./events";
import { checkAnonymous, type RequestContext } from "./http/context";
import { corsHeaders, isPreflight, preflightResponse, withHeaders } from "./http/cors";
import { handle } from "./http/routes";
import {
  closedWebSocket, isWebSocketHandshake, misconfigured, parseTarget, RequestError, unavailable,
} from "./messages";
import { count } from "./metrics";
import { ConfigurationError, settingsOf } from "./settings";

export { ConnectionRegistry } from "./auth/registry";
export { NotificationRoom } from "./rooms/room";

export default {
  async fetch(request, env): Promise<Response> {
    let cors: Record<string, string> = {};
    let context: RequestContext | undefined;
    try {
      const settings = settingsOf(env);
      checkOrigin(request, settings);
      cors = corsHeaders(request);
      context = { ...parseTarget(request.url), request, env, settings };
      if (isPreflight(request)) {
        checkAnonymous(context);
        return preflightResponse(request, cors);
      }
      return withHeaders(await handle(context), cors);
    } catch (error) {
      const problem = toRequestError(error);
      // The allowed origins are unknown, and the message contains no secret, so every page may read it.
      if (error instanceof ConfigurationError) cors = corsHeaders(request);
      count(env, "error", problem.body.code);
      if (context?.claims !== undefined && problem.status !== 429 && problem.status !== 503) {
        requestLimitsOf(context.settings).countRefusal(context.claims, addressOf(request));
      }
      logRejected(request, problem.body, { claims: context?.claims, user: problem.rejectedUser });
      // A page cannot read the response to a handshake, but it can read a close reason.
      if (error instanceof ConfigurationError && request.headers.has("Origin") && isWebSocketHandshake(request)) {
        return closedWebSocket(INTERNAL_ERROR, `${problem.body.error}: ${problem.body.details}`);
      }
      return withHeaders(problem.response, cors);
    }
  },
} satisfies ExportedHandler<Env>;

/** Convert any error to an error response that reveals no internals. */
function toRequestError(error: unknown): RequestError {
  if (error instanceof RequestError) return error;
  if (error instanceof ConfigurationError) return misconfigured(error.message); // logRejected logs it
  console.error(error);
  return unavailable("internal error: see the Worker's log");
}

const INTERNAL_ERROR = 1011; // RFC 6455, section 7.4.1. Clients reconnect, with increasing delays
