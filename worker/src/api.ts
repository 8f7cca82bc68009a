/** Every HTTP route. See PROTOCOL.md, "HTTP". */

import { credentialOf, identify, notOpened, permit, refuseRevoked, requireScope } from "./access";
import { ANYONE, opens, type Claims } from "./auth/claims";
import { idOfToken, isCredential, MalformedTokenError, MAX_TOKEN_BYTES } from "./auth/verify";
import { holderOf } from "./holder";
import {
  jsonBody,
  jsonResponse,
  badRequest,
  methodNotAllowed,
  notFound,
  positionOf,
  RequestError,
  roomOf,
  textResponse,
  payloadTooLarge,
  unavailable,
  type Problem,
  type Target,
} from "./http";
import { addressOf, PublishLimits, requestLimitsOf } from "./limits";
import type { Publication, Receipt } from "./log";
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
  MAX_SPREAD_BYTES,
  type Checked,
} from "./protocol/notification";
import type { NotificationRoom } from "./room";
import { hasKeys, settingsOf, type Env, type Settings } from "./settings";

const HISTORY_LIMIT = 100;
const MAX_HISTORY_LIMIT = 1000;
const MAX_USER = 512;

/** A request, and what its path and query ask for. */
export interface Asked extends Target {
  request: Request;
  env: Env;
  settings: Settings;
  /** What its credential says, as soon as it was found to count. */
  claims?: Claims;
}

type Route = (asked: Asked, room: string) => Promise<Response>;

/** @throws RequestError it gets an error answer. */
export async function answer(asked: Asked): Promise<Response> {
  const [method, route] = routeOf(asked);
  const given = asked.request.method;
  if (given !== method && !(given === "HEAD" && method === "GET")) {
    checkAnonymous(asked);
    throw methodNotAllowed(method);
  }
  return route(asked, asked.segments[1] ?? "");
}

function routeOf(asked: Asked): [string, Route] {
  const { segments } = asked;
  const isRoom = segments.length === 3 && segments[0] === "rooms";
  const found = isRoom ? ROOM_ROUTES.get(segments[2]!) : ROUTES.get(segments.join("/"));
  if (found === undefined) {
    checkAnonymous(asked);
    throw notFound(SEE);
  }
  return found;
}

/** A request for which nobody wants a credential: it counts for its address. */
export function checkAnonymous({ request, settings }: Asked): void {
  requestLimitsOf(settings).checkRequest(undefined, addressOf(request));
}

const SEE = "see PROTOCOL.md, 'HTTP', for the routes";

const ROUTES = new Map<string, [string, Route]>([
  ["health", ["GET", health]],
  ["ready", ["GET", ready]],
  ["metrics", ["GET", showMetrics]],
  ["openapi.json", ["GET", describe]],
  ["broadcast", ["POST", broadcastMany]],
  ["revoke", ["POST", revoke]],
]);

/** Below `/rooms/{room}/`. */
const ROOM_ROUTES = new Map<string, [string, Route]>([
  ["broadcast", ["POST", broadcastOne]],
  ["subscribe", ["GET", subscribeWithoutUpgrade]],
  ["history", ["GET", history]],
  ["health", ["GET", roomHealth]],
  ["presence", ["GET", roomPresence]],
]);

export function stubOf(env: Env, room: string): DurableObjectStub<NotificationRoom> {
  return env.NOTIFICATION_ROOM.get(env.NOTIFICATION_ROOM.idFromName(room));
}

/**
 * Ask a room's object; once more, if it was just moved or replaced. What is asked has to bear that.
 *
 * @throws RequestError 503.
 */
export async function ask<Answer>(
  env: Env,
  room: string,
  question: (stub: DurableObjectStub<NotificationRoom>) => Promise<Answer>,
): Promise<Answer> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await question(stubOf(env, room));
    } catch (error) {
      const { retryable, overloaded } = error as { retryable?: boolean; overloaded?: boolean };
      if (retryable === true && overloaded !== true && attempt === 1) continue;
      console.error(`a room's object could not be asked: ${String(error)}`);
      throw unavailable("the room cannot be reached now");
    }
  }
}

async function health(asked: Asked): Promise<Response> {
  checkAnonymous(asked);
  return jsonResponse(200, { status: "ok" });
}

async function ready(asked: Asked): Promise<Response> {
  checkAnonymous(asked);
  await readinessOf(asked.env).check();
  return jsonResponse(200, { status: "ready" });
}

async function describe(asked: Asked): Promise<Response> {
  checkAnonymous(asked);
  return jsonResponse(200, openapi);
}

/** What the request's credential says, if it counts. */
async function identified(asked: Asked): Promise<Claims> {
  const { request, query, env, settings } = asked;
  const address = addressOf(request);
  const claims = await identify(settings, credentialOf(request.headers, query, []), address);
  try {
    await refuseRevoked(env, claims);
  } catch (error) {
    if (error instanceof RequestError && error.status === 401) {
      requestLimitsOf(settings).countFailedAttempt(address);
    }
    throw error;
  }
  asked.claims = claims;
  return claims;
}

/** A publisher's, unless too many of its requests were refused. */
async function publisherOf(asked: Asked): Promise<Claims> {
  const claims = await identified(asked);
  requestLimitsOf(asked.settings).checkPublisher(claims);
  return claims;
}

/** The same for a request that is no publish: it counts for its caller. */
async function countedClaimsOf(asked: Asked): Promise<Claims> {
  const claims = await identified(asked);
  requestLimitsOf(asked.settings).checkRequest(claims, addressOf(asked.request));
  return claims;
}

async function showMetrics(asked: Asked): Promise<Response> {
  requireScope(await countedClaimsOf(asked), "metrics", "admin");
  return textResponse(200, METRICS_TEXT, "text/plain; version=0.0.4; charset=utf-8");
}

async function roomHealth(asked: Asked, segment: string): Promise<Response> {
  const room = roomOf(segment);
  const claims = await countedClaimsOf(asked);
  if (!opens(claims, room)) throw notOpened(claims);
  const connections = await ask(asked.env, room, (stub) => stub.connections());
  return jsonResponse(200, { status: "ok", connections, roomId: room });
}

async function roomPresence(asked: Asked, segment: string): Promise<Response> {
  const room = roomOf(segment);
  permit(await countedClaimsOf(asked), "presence", room);
  const { connections, users } = await ask(asked.env, room, (stub) => stub.presence());
  return readResponse(asked, JSON.stringify({ room, connections, users }));
}

async function subscribeWithoutUpgrade(_: Asked, segment: string): Promise<Response> {
  roomOf(segment);
  throw new RequestError(
    426,
    "upgrade_required",
    "Expected WebSocket upgrade",
    "open this address as a WebSocket, ws:// or wss://",
    { Upgrade: "websocket", Connection: "Upgrade" },
  );
}

async function history(asked: Asked, segment: string): Promise<Response> {
  const room = roomOf(segment);
  permit(await countedClaimsOf(asked), "subscribe", room);
  const after = asked.query.get("after") ?? "earliest";
  const position = after === "earliest" ? undefined : positionOf(after, "or 'earliest'");
  const limit = limitOf(asked.query.get("limit"));
  const text = await ask(asked.env, room, (stub) => stub.history(position, limit));
  return readResponse(asked, text);
}

/** What a caller reads counts by its bytes. */
function readResponse({ request, settings, claims }: Asked, text: string): Response {
  const content = new TextEncoder().encode(text);
  requestLimitsOf(settings).countRead(claims ?? ANYONE, addressOf(request), content.length);
  return textResponse(200, content, "application/json");
}

function limitOf(text: string | undefined): number {
  if (text === undefined) return HISTORY_LIMIT;
  const limit = /^[0-9]{1,4}$/.test(text) ? Number(text) : 0;
  if (limit >= 1 && limit <= MAX_HISTORY_LIMIT) return limit;
  throw badRequest("Invalid limit", `limit: expected 1 to ${MAX_HISTORY_LIMIT}`);
}

async function broadcastOne(asked: Asked, segment: string): Promise<Response> {
  const room = roomOf(segment);
  const claims = await publisherOf(asked);
  permit(claims, "broadcast", room);
  const checked = check(await jsonBody(asked.request));
  checkLimits(asked, claims, 1, checked.bytes);
  const published = await publishAll(asked.env, new Map([[room, [checked]]]));
  const [receipt] = receiptsOf(published, room);
  const { id, cursor, broadcastCount, duplicate } = receipt!;
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

async function broadcastMany(asked: Asked): Promise<Response> {
  const claims = await publisherOf(asked);
  requireScope(claims, "broadcast");
  const body = await jsonBody(asked.request);
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
  const spread = good.reduce((sum, { rooms, checked }) => sum + rooms.length * checked.bytes, 0);
  if (spread > MAX_SPREAD_BYTES) {
    throw payloadTooLarge(
      `a batch has at most ${MAX_SPREAD_BYTES} bytes, each notification counted once for each of ` +
        "its rooms",
    );
  }
  count(asked.env, "publish", "rejected", items.length - good.length);
  for (const [n, item] of items.entries()) {
    if (item instanceof RequestError) logRefusal(asked.request, item.body, { claims, room: roomsIn(given[n])?.[0] });
  }
  checkLimits(asked, claims, good.reduce((sum, { rooms }) => sum + rooms.length, 0), spread);
  const results = resultsOf(items, await publishAll(asked.env, byRoom(good)));
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
type Published = Map<string, Receipt[] | RequestError>;

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
        const receipts = await ask(env, room, (stub) => stub.publish(publications));
        published.set(room, receipts);
        receipts.forEach((receipt, place) => {
          if (receipt.duplicate) duplicates++;
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
function receiptsOf(published: Published, room: string): Receipt[] {
  const found = published.get(room)!;
  if (found instanceof RequestError) throw found;
  return found;
}

/** What became of each notification of a batch, in order. */
function resultsOf(items: Item[], published: Published): Result[] {
  const place = new Map<string, number>(); // how many of a room's receipts were given out
  return items.map((item) => {
    if (item instanceof RequestError) return { success: false, ...item.body };
    const receipts: [string, Receipt][] = [];
    let failure: RequestError | undefined;
    for (const room of item.rooms) {
      const answer = published.get(room)!;
      if (answer instanceof RequestError) {
        failure = answer;
        continue;
      }
      const next = place.get(room) ?? 0;
      place.set(room, next + 1);
      receipts.push([room, answer[next]!]);
    }
    // Its other rooms may have it: sent again, it is a duplicate there.
    return failure === undefined ? resultOf(receipts) : { success: false, ...failure.body };
  });
}

function resultOf(receipts: [string, Receipt][]): Result {
  const rooms = receipts.map(([room, { broadcastCount, cursor, duplicate }]) => [
    room,
    { broadcastCount, cursor, duplicate },
  ]);
  return {
    success: true,
    broadcastCount: receipts.reduce((sum, [, { broadcastCount }]) => sum + broadcastCount, 0),
    id: receipts[0]![1].id,
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
      return roomOf(name);
    });
    for (const room of rooms) permit(claims, "broadcast", room);
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

function checkLimits({ env }: Asked, claims: Claims, many: number, bytes: number): void {
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

async function revoke(asked: Asked): Promise<Response> {
  requireScope(await countedClaimsOf(asked), "admin");
  const { env, settings } = asked;
  const [member, given] = revocationIn(await jsonBody(asked.request));
  // Without keys no token is looked at, so there is none to take back.
  if (!hasKeys(settings)) return jsonResponse(200, { success: true, revoked: false, closed: 0 });
  const of = member === "user" ? "user" : "token";
  const name = await nameToRevoke(settings, member, given);
  // The clock of who issued a token may be ahead by the leeway.
  const at = Date.now() / 1000 + settings.tokenLeewayS;
  try {
    const closed = await holderOf(env, of, name).revoke({ of, name, at });
    return jsonResponse(200, { success: true, revoked: true, closed });
  } catch (error) {
    console.error(`revoking failed: ${String(error)}`);
    throw unavailable("it is not sure that the tokens were revoked: say it again");
  }
}

const REVOCABLE = ["user", "token", "jti"] as const;
type Revocable = (typeof REVOCABLE)[number];

/** @throws RequestError 400: the body names nothing, or several. */
function revocationIn(body: unknown): [Revocable, string] {
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
async function nameToRevoke(settings: Settings, member: Revocable, given: string): Promise<string> {
  if (member === "token") {
    let id: string | undefined;
    try {
      id = await idOfToken(settings, bareToken(given));
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
