/** How the Worker reaches the object of a room: remote calls, and the handshake of a subscription. */

import type { Claims } from "../auth/claims";
import { unavailable } from "../messages";

/** The header with the {@link SubscribeRequest}, from the Worker to the room. */
const SUBSCRIBE_REQUEST = "X-Synap-Subscribing";
/** The header of an error response that a WebSocket client receives as a close code instead. */
export const CLOSE_CODE = "X-Synap-Close-Code";
/** Sent to event streams after a page of the log. The Worker sends it back to request the next page. */
export const MORE = "more";
/** The Worker sends it when the client of an event stream reads slowly, and {@link MORE} when it has caught up. */
export const HOLD = "hold";

/** A validated subscribe request, from the Worker to the room. */
export interface SubscribeRequest {
  transport: "websocket" | "sse";
  /** A cursor, `earliest` or `latest`; undefined: the room's default. */
  after?: string;
  /** The position is not a cursor: replay everything that is retained, and report `recovered: false`. */
  isLost: boolean;
  device?: string;
  /** Send presence events. */
  wantsPresence: boolean;
  /** Send control frames. */
  controlFrames: boolean;
  /** The subprotocol to select. */
  subprotocol?: string;
  /** The user of the connection, for presence. */
  presentAs?: string;
  claims: Claims;
}

export type RoomStub = ReturnType<Env["NOTIFICATION_ROOM"]["get"]>;

export function roomStub(env: Env, room: string): RoomStub {
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
  call: (stub: RoomStub) => Promise<Answer>,
): Promise<Answer> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call(roomStub(env, room));
    } catch (error) {
      const { retryable, overloaded } = error as { retryable?: boolean; overloaded?: boolean };
      if (retryable === true && overloaded !== true && attempt === 1) continue;
      throw unreachable(error);
    }
  }
}

/**
 * Subscribe to a room. Not retried: the client reconnects.
 *
 * @returns the room's response: a WebSocket, or an error.
 * @throws RequestError 503.
 */
export async function subscribeToRoom(env: Env, room: string, request: SubscribeRequest): Promise<Response> {
  const headers = { Upgrade: "websocket", [SUBSCRIBE_REQUEST]: encodeURIComponent(JSON.stringify(request)) };
  try {
    return await roomStub(env, room).fetch("https://room/", { headers });
  } catch (error) {
    throw unreachable(error);
  }
}

/** Parse the request of {@link subscribeToRoom}. */
export function parseSubscribeRequest({ headers }: Request): SubscribeRequest {
  return JSON.parse(decodeURIComponent(headers.get(SUBSCRIBE_REQUEST) ?? "")) as SubscribeRequest;
}

function unreachable(error: unknown): Error {
  console.error(`room unreachable: ${String(error)}`);
  return unavailable("room temporarily unreachable");
}
