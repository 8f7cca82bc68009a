/** A request on its way through the routes, and its authentication. */

import { authenticate, credentialOf, rejectRevoked } from "../auth/authorization";
import type { Claims } from "../auth/claims";
import { addressOf, requestLimitsOf } from "../auth/limits";
import { RequestError, type Target } from "../messages";
import type { Settings } from "../settings";

/** A request with its parsed path and query. */
export interface RequestContext extends Target {
  request: Request;
  env: Env;
  settings: Settings;
  /** The claims of the credential, after it was verified. */
  claims?: Claims;
}

/** Count a request that needs no credential, for its address. */
export function checkAnonymous({ request, settings }: RequestContext): void {
  requestLimitsOf(settings).checkRequest(undefined, addressOf(request));
}

/** Authenticate a request, and check that its token is not revoked. */
async function authenticateRequest(context: RequestContext): Promise<Claims> {
  const { request, query, env, settings } = context;
  const address = addressOf(request);
  const claims = await authenticate(settings, credentialOf(request.headers, query, []), address);
  try {
    await rejectRevoked(env, claims);
  } catch (error) {
    if (error instanceof RequestError && error.status === 401) {
      requestLimitsOf(settings).countFailedAttempt(address);
    }
    throw error;
  }
  context.claims = claims;
  return claims;
}

/** Authenticate a publish. @throws RequestError 429 if too many requests of the publisher were rejected. */
export async function authenticatePublisher(context: RequestContext): Promise<Claims> {
  const claims = await authenticateRequest(context);
  requestLimitsOf(context.settings).checkPublisher(claims);
  return claims;
}

/** Authenticate a request that is not a publish, and count it for its caller. */
export async function authenticateCounted(context: RequestContext): Promise<Claims> {
  const claims = await authenticateRequest(context);
  requestLimitsOf(context.settings).checkRequest(claims, addressOf(context.request));
  return claims;
}
