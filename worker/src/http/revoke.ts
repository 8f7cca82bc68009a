/** `POST /revoke`. See PROTOCOL.md, "Revoking". */

import { requireScope } from "../auth/authorization";
import { registryOf } from "../auth/registry";
import { isCredential, MalformedTokenError, MAX_TEXT, MAX_TOKEN_BYTES, tokenId } from "../auth/tokens";
import { badRequest, jsonResponse, readJsonBody, unavailable } from "../messages";
import { isObject } from "../protocol/invalid";
import { hasKeys, type Settings } from "../settings";
import { authenticateCounted, type RequestContext } from "./context";

export async function revokeTokens(context: RequestContext): Promise<Response> {
  requireScope(await authenticateCounted(context), "admin");
  const { env, settings } = context;
  const [member, given] = parseRevocation(await readJsonBody(context.request));
  // Without keys no token is verified, so there is none to revoke.
  if (!hasKeys(settings)) return jsonResponse(200, { success: true, revoked: false, closed: 0 });
  const of = member === "user" ? "user" : "token";
  const name = await subjectToRevoke(settings, member, given);
  // The clock of a token's issuer may be ahead by the leeway.
  const at = Date.now() / 1000 + settings.tokenLeewayS;
  try {
    const closed = await registryOf(env, of, name).revoke({ kind: of, subject: name, at });
    return jsonResponse(200, { success: true, revoked: true, closed });
  } catch (error) {
    console.error(`revoking failed: ${String(error)}`);
    throw unavailable("the revocation may be incomplete: retry it");
  }
}

const REVOCABLE = ["user", "token", "jti"] as const;
type Revocable = (typeof REVOCABLE)[number];

/** Parse the body of `POST /revoke`. @throws RequestError 400 if it does not have exactly one member. */
function parseRevocation(body: unknown): [Revocable, string] {
  const members = isObject(body) ? body : {};
  const named = REVOCABLE.filter((name) => Object.hasOwn(members, name));
  const [member] = named;
  const value = member === undefined ? undefined : members[member];
  const most = member === "token" ? MAX_GIVEN : MAX_TEXT;
  if (named.length === 1 && typeof value === "string" && value !== "") {
    if ([...value].length <= most) return [member!, value];
  }
  throw badRequest(NOT_REVOKED, 'expected one of {"user": id}, {"token": JWT} and {"jti": id}');
}

const NOT_REVOKED = "Nothing was revoked";
const MAX_GIVEN = MAX_TOKEN_BYTES + 100;

/**
 * Return the id of the user or the token to revoke.
 *
 * @throws RequestError 400. The message does not contain the given text, which may be a credential.
 */
async function subjectToRevoke(settings: Settings, member: Revocable, given: string): Promise<string> {
  if (member === "token") {
    let id: string | undefined;
    try {
      id = await tokenId(settings, bareToken(given));
    } catch (error) {
      if (!(error instanceof MalformedTokenError)) throw error;
      throw badRequest(NOT_REVOKED, `token: ${error.message}`);
    }
    if (id !== undefined) return id;
    const problem = "no key of this server has signed it; was it copied whole?";
    throw badRequest(NOT_REVOKED, `token: ${problem}`);
  }
  if (await isCredential(settings, given)) {
    const problem = 'this is a credential; send a token as {"token": …}';
    throw badRequest(NOT_REVOKED, `${member}: ${problem}`);
  }
  return given;
}

const DECORATED =
  /^["']?\s*(?:authorization\s*:\s*)?(?:bearer[\s.]\s*)?["']?([\w.=-]+)["']?\s*["']?$/i;

/** Remove white space, quotes and `Bearer` that were copied with a token. */
function bareToken(text: string): string {
  return DECORATED.exec(text.trim())?.[1] ?? text;
}
