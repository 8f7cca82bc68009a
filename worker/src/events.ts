/** One log line for each rejected request, at a limited rate. See docs/cloudflare.md. */

import type { Claims } from "./auth/claims";
import { parseTarget, type Problem } from "./messages";
import { Rate } from "./auth/limits";
import { problemWithRoom, withoutCredentials } from "./protocol/rooms";

/** The limit of one isolate. Otherwise unauthenticated clients could fill the log, which costs money. */
const MAX_LINES_PER_S = 10;
const MAX_ORIGIN = 200;

const lines = new Rate(MAX_LINES_PER_S);

/**
 * Log why a request or a handshake was rejected: the cause, the room, the user and the page's origin, but never the
 * content of a body, a key or a token.
 *
 * @param of `room`: if the path does not contain it; `claims`: of a valid credential; `user`: of an invalid token;
 *   `closeCode`: of a handshake that was accepted and closed.
 */
export function logRejected(
  request: Request,
  problem: Problem,
  of: { claims?: Claims | undefined; user?: string | undefined; room?: unknown; closeCode?: number } = {},
): void {
  if (lines.waitS("", 1) > 0) return;
  const members: [string, string | number | null | undefined][] = [
    ["user", of.claims?.user ?? of.user],
    ["key", of.claims?.key],
    ["room", shownRoom(of.room) ?? roomOf(request)],
    ["code", problem.code],
    // The details of an invalid request may repeat its content.
    ["details", problem.code === "invalid_request" ? problem.error : problem.details],
    ["origin", originOf(request)],
    ["close_code", of.closeCode],
  ];
  const fields = members
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  console.warn(`rejected ${fields.join(" ")}`);
}

/** Return a browser's origin (RFC 6454, section 6.2) unchanged, so that an operator can allow it. */
function originOf(request: Request): string | undefined {
  const origin = request.headers.get("Origin")?.slice(0, MAX_ORIGIN);
  if (origin === undefined || /^(?:null|[a-z][a-z0-9+.-]*:\/\/[a-z0-9.:[\]-]+)$/.test(origin)) return origin;
  return withoutCredentials(origin);
}

function roomOf(request: Request): string | undefined {
  try {
    const [kind, id, ...rest] = parseTarget(request.url).segments;
    if (kind === "rooms") return shownRoom(id);
    if (kind === "jobs" && rest.length === 0) return shownRoom(`request_${id}`);
    return kind === "users" && rest[0] === "jobs" ? shownRoom(`user_${id}`) : undefined;
  } catch {
    return undefined;
  }
}

function shownRoom(room: unknown): string | undefined {
  return typeof room === "string" && problemWithRoom(room) === undefined ? withoutCredentials(room) : undefined;
}
