/** Publishing: validate, authorize, limit, store and deliver notifications. See PROTOCOL.md, "HTTP". */

import { authorize, requireScope } from "../auth/authorization";
import type { Claims } from "../auth/claims";
import { publishLimitsOf } from "../auth/limits";
import { logRejected } from "../events";
import {
  badRequest, conflictError, jsonResponse, parseRoomParam, payloadTooLarge, readJsonBody, RequestError, type Problem,
} from "../messages";
import { count } from "../metrics";
import { InvalidNotificationError, isObject } from "../protocol/invalid";
import {
  checkNotification,
  MAX_BATCH_FANOUT_BYTES,
  MAX_BATCH_NOTIFICATIONS,
  MAX_NOTIFICATION_BYTES,
  type Checked,
} from "../protocol/notification";
import { readinessOf } from "../readiness";
import { callRoom } from "../rooms/stub";
import type { Publication, PublishResult } from "../stores/entries";
import { authenticatePublisher, type RequestContext } from "./context";

/** `POST /rooms/{room}/broadcast`. */
export async function broadcastOne(context: RequestContext, segment: string): Promise<Response> {
  const room = parseRoomParam(segment);
  const claims = await authenticatePublisher(context);
  authorize(claims, "broadcast", room);
  const checked = check(await readJsonBody(context.request));
  checkLimits(context, claims, 1, checked.bytes);
  const published = await publishAll(context.env, new Map([[room, [checked]]]));
  const [publishResult] = publishResultsOf(published, room);
  const { id, cursor, broadcastCount, duplicate, conflict } = publishResult!;
  if (conflict !== undefined) throw conflictError(conflict);
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

/** `POST /broadcast`: a batch. */
export async function broadcastMany(context: RequestContext): Promise<Response> {
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
      `a batch has at most ${MAX_BATCH_FANOUT_BYTES} bytes, each notification counted once for each of its rooms`,
    );
  }
  count(context.env, "publish", "rejected", items.length - good.length);
  for (const [n, item] of items.entries()) {
    if (item instanceof RequestError) logRejected(context.request, item.body, { claims, room: roomsIn(given[n])?.[0] });
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
  let [accepted, duplicates, rejected, failed, bytes] = [0, 0, 0, 0, 0];
  await Promise.all(
    [...given].map(async ([room, publications]) => {
      try {
        const publishResults = await callRoom(env, room, (stub) => stub.publish(publications));
        published.set(room, publishResults);
        publishResults.forEach((publishResult, place) => {
          if (publishResult.conflict !== undefined) return void rejected++;
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
  count(env, "publish", "rejected", rejected);
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
  let failure: Problem | undefined;
  const rooms = publishResults.map(([room, { broadcastCount, cursor, duplicate, conflict }]) => {
    if (conflict === undefined) return [room, { broadcastCount, cursor, duplicate }];
    const problem = conflictError(conflict).body;
    failure ??= problem;
    return [room, problem];
  });
  return {
    success: failure === undefined,
    ...failure,
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
    throw payloadTooLarge(`a notification has at most ${MAX_NOTIFICATION_BYTES} bytes`);
  }
  return checked;
}

/** Count notifications and their bytes for the publisher. @throws RequestError 429. */
function checkLimits({ env, settings }: RequestContext, claims: Claims, notifications: number, bytes: number): void {
  try {
    publishLimitsOf(settings).check(claims, notifications, bytes);
  } catch (error) {
    count(env, "publish", "rejected", notifications);
    throw error;
  }
}
