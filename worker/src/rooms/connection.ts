/**
 * One WebSocket of a room, and the state that survives hibernation of the object.
 *
 * An event stream is a WebSocket between the Worker and the room: see http/sse.ts.
 */

import type { Claims } from "../auth/claims";
import type { Cursor } from "../protocol/cursor";

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

/** The state stored with the socket. Times are in ms since 1970; those of tokens are in seconds. */
export interface Attachment {
  id: string;
  transport: "websocket" | "sse";
  controlFrames: boolean;
  wantsPresence: boolean;
  device?: string;
  presentAs?: string;
  user?: string;
  tokenId?: string;
  voucher?: string;
  issuedAt?: number;
  expiresAt?: number;
  /** When to send `synap.token_expiring`. */
  warnsAt?: number;
  /** `synap.token_expiring` was sent. */
  isWarned: boolean;
  lastReceivedAt: number;
  /** The progress of the replay; undefined: it is complete. */
  replaying?: Replaying;
  /** The server has closed the connection. */
  isEnded?: boolean;
}

export interface Replaying {
  position: Cursor;
  replayed: number;
  isLost: boolean;
}

/** The largest backlog of a subscriber; above it, it is a slow consumer. */
const MAX_BACKLOG_BYTES = 1024 * 1024;
/** A subscriber that reads nothing of its backlog for this long is a slow consumer. */
const STALL_MS = 20_000;
/** The minimum time between two writes of `lastReceivedAt` to the attachment. */
const SAVE_INTERVAL_MS = 5000;

/** The largest total backlog of a room, and of one user in it. An object has 128 MB of memory. */
const MAX_ROOM_BACKLOG_BYTES = 32 * 1024 * 1024;
const MAX_USER_BACKLOG_BYTES = 8 * 1024 * 1024;

/** Return the slow consumers: those over their own limit, and the largest backlogs while a total is over its limit. */
export function slowConsumers(connections: Iterable<Connection>, now: number): Connection[] {
  const found: Connection[] = [];
  const backlogged: Connection[] = [];
  for (const connection of connections) {
    if (connection.backlogBytes > MAX_BACKLOG_BYTES || connection.isStalled(now)) found.push(connection);
    else if (connection.backlogBytes > 0) backlogged.push(connection);
  }
  // The largest come last, so they are the ones that exceed the totals.
  backlogged.sort((one, other) => one.backlogBytes - other.backlogBytes);
  const byUser = new Map<string, number>();
  let sum = 0;
  for (const connection of backlogged) {
    const user = connection.attachment.user ?? "";
    const userBytes = (byUser.get(user) ?? 0) + connection.backlogBytes;
    const isOver = user !== "" && userBytes > MAX_USER_BACKLOG_BYTES;
    if (isOver || sum + connection.backlogBytes > MAX_ROOM_BACKLOG_BYTES) {
      found.push(connection);
      continue;
    }
    sum += connection.backlogBytes;
    byUser.set(user, userBytes);
  }
  return found;
}

export class Connection {
  readonly socket: WebSocket;
  readonly attachment: Attachment;
  /** The number of token renewals, because only the last one applies. */
  renewals = 0;
  #savedAt: number;
  #lastBacklogBytes = 0;
  /** The time since which the client has read nothing of its backlog. */
  #stalledSince = Date.now();

  constructor(socket: WebSocket, attachment: Attachment) {
    this.socket = socket;
    this.attachment = attachment;
    this.#savedAt = attachment.lastReceivedAt;
  }

  /** Whether the client acknowledges itself (`synap.v1`). Otherwise delivery counts as acknowledgement. */
  get acknowledges(): boolean {
    return this.attachment.transport === "websocket" && this.attachment.controlFrames;
  }

  /** The backlog; 0 on a runtime that does not report it (before November 2026). */
  get backlogBytes(): number {
    return (this.socket.bufferedAmount as number | undefined) ?? 0;
  }

  save(): void {
    this.socket.serializeAttachment(this.attachment);
  }

  touch(now: number): void {
    this.attachment.lastReceivedAt = now;
    if (now - this.#savedAt > SAVE_INTERVAL_MS) {
      this.#savedAt = now;
      this.save();
    }
  }

  send(text: string): void {
    this.#observeBacklog(Date.now());
    try {
      this.socket.send(text);
    } catch {
      // The socket is closing: webSocketClose follows.
    }
    this.#lastBacklogBytes = this.backlogBytes;
  }

  /** Whether the client has read nothing of its backlog for a while. */
  isStalled(now: number): boolean {
    this.#observeBacklog(now);
    return now - this.#stalledSince > STALL_MS;
  }

  /** Update the stall time: the client has read something if the backlog is smaller than after the last send. */
  #observeBacklog(now: number): void {
    const backlogBytes = this.backlogBytes;
    if (backlogBytes === 0 || backlogBytes < this.#lastBacklogBytes) this.#stalledSince = now;
    this.#lastBacklogBytes = backlogBytes;
  }
}
