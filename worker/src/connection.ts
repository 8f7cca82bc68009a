/**
 * One WebSocket of a room, and what of it survives the object's sleep.
 *
 * An event stream is a WebSocket, too: the Worker holds it and writes what comes on it (events.ts).
 */

import type { Claims } from "./auth/claims";
import type { Cursor } from "./protocol/cursor";

/** What a subscriber asks for, from the Worker to the room, after it was looked at. */
export interface SubscribeRequest {
  transport: "websocket" | "sse";
  /** A cursor, `earliest`, `latest`; undefined: the room's own default. */
  after?: string;
  /** The position is of no log: everything that is retained, and `recovered: false`. */
  isLost: boolean;
  device?: string;
  /** It wants to hear who comes and goes. */
  wantsPresence: boolean;
  /** It gets control frames. */
  controlFrames: boolean;
  /** The subprotocol that it gets. */
  subprotocol?: string;
  /** Whose connection it is, for presence. */
  presentAs?: string;
  claims: Claims;
}

/** What is kept with the socket. Times in ms since 1970, those of tokens in seconds. */
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
  /** When it is told that its token ends soon. */
  warnsAt?: number;
  /** It was told that its token ends soon. */
  isWarned: boolean;
  lastReceivedAt: number;
  /** How far the log was replayed; undefined: it is live. */
  replaying?: Replaying;
  /** The server has ended it. */
  isEnded?: boolean;
}

export interface Replaying {
  position: Cursor;
  replayed: number;
  isLost: boolean;
}

/** More than this waits, and the subscriber is too slow. */
const MAX_BACKLOG_BYTES = 1024 * 1024;
/** Nothing was taken for so long: too slow, however little waits. */
const STALL_MS = 20_000;
/** What is heard is kept with the socket not more often than that. */
const SAVE_INTERVAL_MS = 5000;

/** So much may wait for the connections of a room, and of one user there. An object has 128 MB. */
const MAX_ROOM_BACKLOG_BYTES = 32 * 1024 * 1024;
const MAX_USER_BACKLOG_BYTES = 8 * 1024 * 1024;

/** Who is too slow: each alone, and the largest backlogs where too much waits in all. */
export function slowConsumers(connections: Iterable<Connection>, now: number): Connection[] {
  const found: Connection[] = [];
  const backlogged: Connection[] = [];
  for (const connection of connections) {
    if (connection.backlogBytes > MAX_BACKLOG_BYTES || connection.isStalled(now)) found.push(connection);
    else if (connection.backlogBytes > 0) backlogged.push(connection);
  }
  backlogged.sort((one, other) => one.backlogBytes - other.backlogBytes); // the largest come last, and are over
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
  /** Counts the tokens that it handed in: the last one counts. */
  renewals = 0;
  #savedAt: number;
  #lastBacklogBytes = 0;
  /** Since when nothing of what waits was taken. */
  #stalledSince = Date.now();

  constructor(socket: WebSocket, attachment: Attachment) {
    this.socket = socket;
    this.attachment = attachment;
    this.#savedAt = attachment.lastReceivedAt;
  }

  /** A client with `synap.v1` says itself what it has received; else what it was handed counts. */
  get acknowledges(): boolean {
    return this.attachment.transport === "websocket" && this.attachment.controlFrames;
  }

  /** Bytes that wait for the client; 0 on a runtime that does not tell (before November 2026). */
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
      // It is closing: its end is on the way here.
    }
    this.#lastBacklogBytes = this.backlogBytes;
  }

  /** Whether nothing was taken for a while, of what waits. */
  isStalled(now: number): boolean {
    this.#observeBacklog(now);
    return now - this.#stalledSince > STALL_MS;
  }

  /** It has taken something if less waits than after the last send. */
  #observeBacklog(now: number): void {
    const backlogBytes = this.backlogBytes;
    if (backlogBytes === 0 || backlogBytes < this.#lastBacklogBytes) this.#stalledSince = now;
    this.#lastBacklogBytes = backlogBytes;
  }
}
