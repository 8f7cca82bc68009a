/** CORS: which responses a page of another origin may read. See PROTOCOL.md, "HTTP". */

const PREFLIGHT: Record<string, string> = {
  "Access-Control-Allow-Methods": "GET, POST",
  "Access-Control-Allow-Headers": "authorization, content-type, last-event-id",
  "Access-Control-Max-Age": "600",
};

/**
 * Return the CORS header fields that let a page of an allowed origin read the response. Credentials are allowed
 * because `EventSource` polyfills send them (`withCredentials`). That grants nothing, since the server uses no
 * cookies.
 */
export function corsHeaders(request: Request): Record<string, string> {
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
function preflightFields(request: Request): Record<string, string> {
  const names = request.headers.get("Access-Control-Request-Headers") ?? "";
  if (names.length > MAX_FIELD_NAMES || !FIELD_NAMES.test(names)) return PREFLIGHT;
  return { ...PREFLIGHT, "Access-Control-Allow-Headers": names };
}

export function isPreflight({ method, headers }: Request): boolean {
  return method === "OPTIONS" && headers.has("Access-Control-Request-Method");
}

/** @param cors the header fields of {@link corsHeaders}. */
export function preflightResponse(request: Request, cors: Record<string, string>): Response {
  const headers = { "Cache-Control": "no-store", ...cors, ...preflightFields(request) };
  return new Response(null, { status: 204, headers });
}

export function withHeaders(response: Response, headers: Record<string, string>): Response {
  if (response.webSocket === null) {
    for (const [name, value] of Object.entries(headers)) response.headers.set(name, value);
  }
  return response;
}
