/** The HTTP routes. See PROTOCOL.md, "HTTP". */

import { credentialOf, authenticate, roomNotAllowed, authorize, rejectRevoked, requireScope } from "../auth/authorization";
import { ANYONE, allowsRoom, type Claims } from "../auth/claims";
import { tokenId, isCredential, MalformedTokenError, MAX_TOKEN_BYTES } from "../auth/tokens";
import { registryOf } from "../auth/registry";
import {
  readJsonBody,
  jsonResponse,
  badRequest,
  methodNotAllowed,
  notFound,
  parseCursorParam,
  RequestError,
  parseRoomParam,
  textResponse,
  payloadTooLarge,
  unavailable,
  type Problem,
  type Target,
} from "../messages";
import { addressOf, PublishLimits, requestLimitsOf } from "../auth/limits";
import type { Publication, PublishResult } from "../stores/log";
import { count, METRICS_TEXT } from "../metrics";
import openapi from "../openapi.json";
import { readinessOf } from "../readiness";
import { logRefusal } from "../events";
import {
  checkNotification,
  InvalidNotificationError,
  isObject,
  MAX_BATCH_NOTIFICATIONS,
  MAX_NOTIFICATION_BYTES,
  MAX_BATCH_FANOUT_BYTES,
  type Checked,
} from "../protocol/notification";
import type { NotificationRoom } from "../rooms/room";
import { hasKeys, settingsOf, type Settings } from "../settings";

const HISTORY_LIMIT = 100;
const MAX_HISTORY_LIMIT = 1000;
const MAX_USER = 512;

/** A request with its parsed path and query. */
export interface RequestContext extends Target {
  request: Request;
  env: Env;
  settings: Settings;
  /** The claims of the credential, after it was verified. */
  claims?: Claims;
}

type Route = (context: RequestContext, room: string) => Promise<Response>;

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
    throw notFound(SEE_ROUTES);
  }
  return found;
}

/** Count a request that needs no credential, for its address. */
export function checkAnonymous({ request, settings }: RequestContext): void {
  requestLimitsOf(settings).checkRequest(undefined, addressOf(request));
}

const SEE_ROUTES = "see PROTOCOL.md, 'HTTP', for the routes";

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
  ["subscribe", ["GET", subscribeWithoutUpgrade]],
  ["history", ["GET", history]],
  ["health", ["GET", roomHealth]],
  ["presence", ["GET", roomPresence]],
]);

export function roomStub(env: Env, room: string): DurableObjectStub<NotificationRoom> {
  return env.NOTIFICATION_ROOM.get(env.NOTIFICATION_ROOM.idFromName(room));
}

/**
 * Call a room's object. The call is retried once if the object was moved or replaced, so it must be idempotent.
 *
 * @throws RequestError 503.
 */
export async function callRoom<Answer>(
  env: Env,
  room: string,
  call: (stub: DurableObjectStub<NotificationRoom>) => Promise<Answer>,
): Promise<Answer> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call(roomStub(env, room));
    } catch (error) {
      const { retryable, overloaded } = error as { retryable?: boolean; overloaded?: boolean };
      if (retryable === true && overloaded !== true && attempt === 1) continue;
      console.error(`room unreachable: ${String(error)}`);
      throw unavailable("room temporarily unreachable");
    }
  }
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
async function authenticatePublisher(context: RequestContext): Promise<Claims> {
  const claims = await authenticateRequest(context);
  requestLimitsOf(context.settings).checkPublisher(claims);
  return claims;
}

/** Authenticate a request that is not a publish, and count it for its caller. */
async function authenticateReader(context: RequestContext): Promise<Claims> {
  const claims = await authenticateRequest(context);
  requestLimitsOf(context.settings).checkRequest(claims, addressOf(context.request));
  return claims;
}

async function showMetrics(context: RequestContext): Promise<Response> {
  requireScope(await authenticateReader(context), "metrics", "admin");
  return textResponse(200, METRICS_TEXT, "text/plain; version=0.0.4; charset=utf-8");
}

async function roomHealth(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  const claims = await authenticateReader(context);
  if (!allowsRoom(claims, room)) throw roomNotAllowed(claims);
  const connections = await callRoom(context.env, room, (stub) => stub.connections());
  return jsonResponse(200, { status: "ok", connections, roomId: room });
}

async function roomPresence(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  authorize(await authenticateReader(context), "presence", room);
  const { connections, users } = await callRoom(context.env, room, (stub) => stub.presence());
  return readResponse(context, JSON.stringify({ room, connections, users }));
}

async function subscribeWithoutUpgrade(_: RequestContext, segment: string): Promise<Response> {
  parseRoomParam(segment);
  throw new RequestError(
    426,
    "upgrade_required",
    "Expected WebSocket upgrade",
    "open this URL as a WebSocket, ws:// or wss://",
    { Upgrade: "websocket", Connection: "Upgrade" },
  );
}

async function history(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  authorize(await authenticateReader(context), "subscribe", room);
  const after = context.query.get("after") ?? "earliest";
  const position = after === "earliest" ? undefined : parseCursorParam(after, "or 'earliest'");
  const limit = parseLimit(context.query.get("limit"));
  const text = await callRoom(context.env, room, (stub) => stub.history(position, limit));
  return readResponse(context, text);
}

/** Return a JSON response, and count its bytes for the caller. */
function readResponse({ request, settings, claims }: RequestContext, text: string): Response {
  const content = new TextEncoder().encode(text);
  requestLimitsOf(settings).countRead(claims ?? ANYONE, addressOf(request), content.length);
  return textResponse(200, content, "application/json");
}

function parseLimit(text: string | undefined): number {
  if (text === undefined) return HISTORY_LIMIT;
  const limit = /^[0-9]{1,4}$/.test(text) ? Number(text) : 0;
  if (limit >= 1 && limit <= MAX_HISTORY_LIMIT) return limit;
  throw badRequest("Invalid limit", `limit: expected 1 to ${MAX_HISTORY_LIMIT}`);
}

async function broadcastOne(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  const claims = await authenticatePublisher(context);
  authorize(claims, "broadcast", room);
  const checked = check(await readJsonBody(context.request));
  checkLimits(context, claims, 1, checked.bytes);
  const published = await publishAll(context.env, new Map([[room, [checked]]]));
  const [publishResult] = publishResultsOf(published, room);
  const { id, cursor, broadcastCount, duplicate } = publishResult!;
  return jsonResponse(200, {
    success: true,
    broadcastCount,
    message: "Notification broadcasted",
    id,
    cursor,
    duplicate,
  });
}

/** One notification of a batch with its rooms, or the error. */
type Item = GoodItem | RequestError;

interface GoodItem {
  rooms: string[];
  checked: Checked;
}

async function broadcastMany(context: RequestContext): Promise<Response> {
  const claims = await authenticatePublisher(context);
  requireScope(claims, "broadcast");
  const body = await readJsonBody(context.request);
  const given = isObject(body) ? body["notifications"] : undefined;
  if (!Array.isArray(given) || given.length === 0) {
    throw badRequest("Invalid batch", "notifications: expected a list of at least one");
  }
  if (given.length > MAX_BATCH_NOTIFICATIONS) {
    throw payloadTooLarge(`the batch exceeds ${MAX_BATCH_NOTIFICATIONS} notifications`);
  }
  const pairs = given.reduce((sum: number, item: unknown) => sum + (roomsIn(item)?.length ?? 0), 0);
  if (pairs > MAX_BATCH_NOTIFICATIONS) {
    throw payloadTooLarge(
      `the batch exceeds ${MAX_BATCH_NOTIFICATIONS} rooms, summed over its notifications`,
    );
  }
  const items = given.map((item: unknown) => checkItem(item, claims));
  const good = items.filter((item): item is GoodItem => !(item instanceof RequestError));
  const fanoutBytes = good.reduce((sum, { rooms, checked }) => sum + rooms.length * checked.bytes, 0);
  if (fanoutBytes > MAX_BATCH_FANOUT_BYTES) {
    throw payloadTooLarge(
      `the batch exceeds ${MAX_BATCH_FANOUT_BYTES} bytes, with each notification counted once for each of ` +
        "its rooms",
    );
  }
  count(context.env, "publish", "rejected", items.length - good.length);
  for (const [n, item] of items.entries()) {
    if (item instanceof RequestError) logRefusal(context.request, item.body, { claims, room: roomsIn(given[n])?.[0] });
  }
  checkLimits(context, claims, good.reduce((sum, { rooms }) => sum + rooms.length, 0), fanoutBytes);
  const results = resultsOf(items, await publishAll(context.env, byRoom(good)));
  return jsonResponse(200, { success: results.every(({ success }) => success), results });
}

type Result = { success: boolean } & Partial<Problem> & Record<string, unknown>;

function byRoom(items: GoodItem[]): Map<string, Checked[]> {
  const found = new Map<string, Checked[]>();
  for (const { rooms, checked } of items) {
    for (const room of rooms) {
      const there = found.get(room);
      if (there === undefined) found.set(room, [checked]);
      else there.push(checked);
    }
  }
  return found;
}

/** The results of each room, or the error if it was unreachable. */
type Published = Map<string, PublishResult[] | RequestError>;

/**
 * Publish to all rooms concurrently. An unreachable room does not affect the others. The operation is idempotent,
 * because each notification has an id.
 */
async function publishAll(env: Env, given: Map<string, Publication[]>): Promise<Published> {
  const published: Published = new Map();
  let [accepted, duplicates, failed, bytes] = [0, 0, 0, 0];
  await Promise.all(
    [...given].map(async ([room, publications]) => {
      try {
        const publishResults = await callRoom(env, room, (stub) => stub.publish(publications));
        published.set(room, publishResults);
        publishResults.forEach((publishResult, place) => {
          if (publishResult.duplicate) duplicates++;
          else accepted++;
          bytes += publications[place]!.bytes;
        });
      } catch (error) {
        if (!(error instanceof RequestError)) throw error;
        published.set(room, error);
        readinessOf(env).suspect();
        failed += publications.length;
      }
    }),
  );
  // Counted once for all rooms, because a request may write only a limited number of data points.
  count(env, "publish", "duplicate", duplicates);
  count(env, "publish", "accepted", accepted, bytes);
  count(env, "publish", "unavailable", failed);
  return published;
}

/** @throws RequestError the room could not be reached. */
function publishResultsOf(published: Published, room: string): PublishResult[] {
  const found = published.get(room)!;
  if (found instanceof RequestError) throw found;
  return found;
}

/** Return the result of each notification of a batch, in order. */
function resultsOf(items: Item[], published: Published): Result[] {
  const place = new Map<string, number>(); // the number of results of each room that were used
  return items.map((item) => {
    if (item instanceof RequestError) return { success: false, ...item.body };
    const publishResults: [string, PublishResult][] = [];
    let failure: RequestError | undefined;
    for (const room of item.rooms) {
      const roomResults = published.get(room)!;
      if (roomResults instanceof RequestError) {
        failure = roomResults;
        continue;
      }
      const next = place.get(room) ?? 0;
      place.set(room, next + 1);
      publishResults.push([room, roomResults[next]!]);
    }
    // Other rooms may have stored it. On a retry it is a duplicate there.
    return failure === undefined ? resultOf(publishResults) : { success: false, ...failure.body };
  });
}

function resultOf(publishResults: [string, PublishResult][]): Result {
  const rooms = publishResults.map(([room, { broadcastCount, cursor, duplicate }]) => [
    room,
    { broadcastCount, cursor, duplicate },
  ]);
  return {
    success: true,
    broadcastCount: publishResults.reduce((sum, [, { broadcastCount }]) => sum + broadcastCount, 0),
    id: publishResults[0]![1].id,
    rooms: Object.fromEntries(rooms),
  };
}

function checkItem(item: unknown, claims: Claims): Item {
  try {
    if (!isObject(item)) throw badRequest("Invalid notification", "expected a JSON object");
    const named = roomsIn(item);
    if (named === undefined) {
      throw badRequest("Invalid notification", "rooms: expected a list of at least one");
    }
    const rooms = [...new Set(named)].map((name) => {
      if (typeof name !== "string") throw badRequest("Invalid room id", "rooms: expected strings");
      return parseRoomParam(name);
    });
    for (const room of rooms) authorize(claims, "broadcast", room);
    const members = Object.entries(item).filter(([name]) => name !== "rooms");
    return { rooms, checked: check(Object.fromEntries(members)) };
  } catch (error) {
    if (error instanceof RequestError) return error;
    throw error;
  }
}

function roomsIn(item: unknown): unknown[] | undefined {
  const rooms = isObject(item) && Object.hasOwn(item, "rooms") ? item["rooms"] : undefined;
  return Array.isArray(rooms) && rooms.length > 0 ? rooms : undefined;
}

/**
 * Validate a notification, and add the missing `id` and `timestamp`.
 *
 * @throws RequestError it is invalid or too large.
 */
function check(value: unknown): Checked {
  let checked: Checked;
  try {
    checked = checkNotification(value, Date.now());
  } catch (error) {
    if (!(error instanceof InvalidNotificationError)) throw error;
    throw badRequest("Invalid message format. Required: type, data", error.message);
  }
  if (checked.bytes > MAX_NOTIFICATION_BYTES) {
    throw payloadTooLarge(`the notification exceeds ${MAX_NOTIFICATION_BYTES} bytes`);
  }
  return checked;
}

const limits = new WeakMap<Settings, PublishLimits>();

function checkLimits({ env }: RequestContext, claims: Claims, notifications: number, bytes: number): void {
  const settings = settingsOf(env);
  let counted = limits.get(settings);
  if (counted === undefined) limits.set(settings, (counted = new PublishLimits(settings)));
  try {
    counted.check(claims, notifications, bytes);
  } catch (error) {
    count(env, "publish", "rejected", notifications);
    throw error;
  }
}

async function revokeTokens(context: RequestContext): Promise<Response> {
  requireScope(await authenticateReader(context), "admin");
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
  const most = member === "token" ? MAX_GIVEN : MAX_USER;
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
    const problem = "not signed by a key of this server; check that it is complete";
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
