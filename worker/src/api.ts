/** Every HTTP route. See PROTOCOL.md, "HTTP". */

import { credentialOf, authenticate, roomNotAllowed, authorize, rejectRevoked, requireScope } from "./access";
import { ANYONE, allowsRoom, type Claims } from "./auth/claims";
import { tokenId, isCredential, MalformedTokenError, MAX_TOKEN_BYTES } from "./auth/verify";
import { registryOf } from "./registry";
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
} from "./http";
import { addressOf, PublishLimits, requestLimitsOf } from "./limits";
import type { Publication, PublishResult } from "./log";
import { count, METRICS_TEXT } from "./metrics";
import openapi from "./openapi.json";
import { readinessOf } from "./readiness";
import { logRefusal } from "./refusals";
import {
  checkNotification,
  InvalidNotificationError,
  isObject,
  MAX_BATCH_NOTIFICATIONS,
  MAX_NOTIFICATION_BYTES,
  MAX_BATCH_FANOUT_BYTES,
  type Checked,
} from "./protocol/notification";
import type { NotificationRoom } from "./room";
import { hasKeys, settingsOf, type Env, type Settings } from "./settings";

const HISTORY_LIMIT = 100;
const MAX_HISTORY_LIMIT = 1000;
const MAX_USER = 512;

/** A request, and what its path and query ask for. */
export interface RequestContext extends Target {
  request: Request;
  env: Env;
  settings: Settings;
  /** What its credential says, as soon as it was found to count. */
  claims?: Claims;
}

type Route = (context: RequestContext, room: string) => Promise<Response>;

/** @throws RequestError it gets an error answer. */
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

/** A request for which nobody wants a credential: it counts for its address. */
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
 * Ask a room's object; once more, if it was just moved or replaced. What is asked has to bear that.
 *
 * @throws RequestError 503.
 */
export async function callRoom<Answer>(
  env: Env,
  room: string,
  question: (stub: DurableObjectStub<NotificationRoom>) => Promise<Answer>,
): Promise<Answer> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await question(roomStub(env, room));
    } catch (error) {
      const { retryable, overloaded } = error as { retryable?: boolean; overloaded?: boolean };
      if (retryable === true && overloaded !== true && attempt === 1) continue;
      console.error(`a room's object could not be asked: ${String(error)}`);
      throw unavailable("the room cannot be reached now");
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

/** What the request's credential says, if it counts. */
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

/** A publisher's, unless too many of its requests were refused. */
async function authenticatePublisher(context: RequestContext): Promise<Claims> {
  const claims = await authenticateRequest(context);
  requestLimitsOf(context.settings).checkPublisher(claims);
  return claims;
}

/** The same for a request that is no publish: it counts for its caller. */
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
    "open this address as a WebSocket, ws:// or wss://",
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

/** What a caller reads counts by its bytes. */
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

/** One notification of a batch: its rooms, or what is wrong with it. */
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
    throw payloadTooLarge(`a batch has at most ${MAX_BATCH_NOTIFICATIONS} notifications`);
  }
  const pairs = given.reduce((sum: number, item: unknown) => sum + (roomsIn(item)?.length ?? 0), 0);
  if (pairs > MAX_BATCH_NOTIFICATIONS) {
    throw payloadTooLarge(
      `a batch goes to at most ${MAX_BATCH_NOTIFICATIONS} rooms, over all its notifications`,
    );
  }
  const items = given.map((item: unknown) => checkItem(item, claims));
  const good = items.filter((item): item is GoodItem => !(item instanceof RequestError));
  const fanoutBytes = good.reduce((sum, { rooms, checked }) => sum + rooms.length * checked.bytes, 0);
  if (fanoutBytes > MAX_BATCH_FANOUT_BYTES) {
    throw payloadTooLarge(
      `a batch has at most ${MAX_BATCH_FANOUT_BYTES} bytes, each notification counted once for each of ` +
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

/** What each room did, or why it could not be asked. */
type Published = Map<string, PublishResult[] | RequestError>;

/**
 * Hand notifications to all rooms at once. A room that cannot be reached fails alone. Doing it twice
 * does nothing more: each notification has its id.
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
  // Once for all rooms: a request may write fewer data points than a batch has rooms.
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

/** What became of each notification of a batch, in order. */
function resultsOf(items: Item[], published: Published): Result[] {
  const place = new Map<string, number>(); // how many of a room's publishResults were given out
  return items.map((item) => {
    if (item instanceof RequestError) return { success: false, ...item.body };
    const publishResults: [string, PublishResult][] = [];
    let failure: RequestError | undefined;
    for (const room of item.rooms) {
      const handle = published.get(room)!;
      if (handle instanceof RequestError) {
        failure = handle;
        continue;
      }
      const next = place.get(room) ?? 0;
      place.set(room, next + 1);
      publishResults.push([room, handle[next]!]);
    }
    // Its other rooms may have it: sent again, it is a duplicate there.
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
 * A notification with what the server adds.
 *
 * @throws RequestError it is none, or too large.
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
    throw payloadTooLarge(`a notification has at most ${MAX_NOTIFICATION_BYTES} bytes`);
  }
  return checked;
}

const limits = new WeakMap<Settings, PublishLimits>();

function checkLimits({ env }: RequestContext, claims: Claims, many: number, bytes: number): void {
  const settings = settingsOf(env);
  let counted = limits.get(settings);
  if (counted === undefined) limits.set(settings, (counted = new PublishLimits(settings)));
  try {
    counted.check(claims, many, bytes);
  } catch (error) {
    count(env, "publish", "rejected", many);
    throw error;
  }
}

async function revokeTokens(context: RequestContext): Promise<Response> {
  requireScope(await authenticateReader(context), "admin");
  const { env, settings } = context;
  const [member, given] = parseRevocation(await readJsonBody(context.request));
  // Without keys no token is looked at, so there is none to take back.
  if (!hasKeys(settings)) return jsonResponse(200, { success: true, revoked: false, closed: 0 });
  const of = member === "user" ? "user" : "token";
  const name = await subjectToRevoke(settings, member, given);
  // The clock of who issued a token may be ahead by the leeway.
  const at = Date.now() / 1000 + settings.tokenLeewayS;
  try {
    const closed = await registryOf(env, of, name).revoke({ kind: of, subject: name, at });
    return jsonResponse(200, { success: true, revoked: true, closed });
  } catch (error) {
    console.error(`revoking failed: ${String(error)}`);
    throw unavailable("it is not sure that the tokens were revoked: say it again");
  }
}

const REVOCABLE = ["user", "token", "jti"] as const;
type Revocable = (typeof REVOCABLE)[number];

/** @throws RequestError 400: the body names nothing, or several. */
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
 * The id of a user or a token.
 *
 * @throws RequestError 400; it shows nothing of what was given.
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

/** A token without what was copied with it: white space, quotes, `Bearer` before it. */
function bareToken(text: string): string {
  return DECORATED.exec(text.trim())?.[1] ?? text;
}
