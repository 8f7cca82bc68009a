/** One line in the Worker's log for each refusal, and not too many of them. See docs/cloudflare.md. */

import type { Claims } from "./auth/claims";
import { parseTarget, type Problem } from "./http";
import { Rate } from "./limits";
import { problemWithRoom, withoutCredentials } from "./protocol/rooms";

/** Of one isolate: strangers could fill the log, which costs. */
const MAX_LINES_PER_S = 10;
const MAX_ORIGIN = 200;

const lines = new Rate(MAX_LINES_PER_S);

/**
 * Write down why a request or a handshake was refused: the cause, the room, the user and the page's
 * origin; never what is in a body, a key or a token.
 *
 * @param of `room` where the path does not name it; `claims` of the credential, if it counts; `user` whose token it was, if it does not; `closeCode` of a
 *   handshake that was accepted and closed.
 */
export function logRefusal(
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
    // What is malformed may be repeated in the details.
    ["details", problem.code === "invalid_request" ? problem.error : problem.details],
    ["origin", originOf(request)],
    ["close_code", of.closeCode],
  ];
  const shown = members
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  console.warn(`refused ${shown.join(" ")}`);
}

/** As it is, if it is what a browser sends (RFC 6454, section 6.2), so that it can be allowed. */
function originOf(request: Request): string | undefined {
  const origin = request.headers.get("Origin")?.slice(0, MAX_ORIGIN);
  if (origin === undefined || /^(?:null|[a-z][a-z0-9+.-]*:\/\/[a-z0-9.:[\]-]+)$/.test(origin)) return origin;
  return withoutCredentials(origin);
}

function roomOf(request: Request): string | undefined {
  try {
    const [kind, room] = parseTarget(request.url).segments;
    return kind === "rooms" ? shownRoom(room) : undefined;
  } catch {
    return undefined;
  }
}

function shownRoom(room: unknown): string | undefined {
  return typeof room === "string" && problemWithRoom(room) === undefined ? withoutCredentials(room) : undefined;
}
