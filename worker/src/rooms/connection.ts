/**
 * One WebSocket of a room, and the state that survives hibernation of the object.
 *
 * An event stream is a WebSocket between the Worker and the room: see http/sse.ts.
 */

import type { Claims } from "../auth/claims";
import { controlFrame } from "../protocol/control";
import type { Cursor } from "../protocol/cursor";
import { Backlog, MAX_REPLAY_BACKLOG_BYTES } from "./backlog";

/** By text: how many of its entries had been delivered live before the one that the client numbers as 0. */
export type Numbers = Record<string, number>;

/** The state stored with the socket. Times are in ms since 1970; those of the credential are in seconds. */
export interface Attachment {
  id: string;
  transport: "websocket" | "sse";
  controlFrames: boolean;
  wantsPresence: boolean;
  device?: string;
  presentAs?: string;
  credential: Credential;
  lastReceivedAt: number;
  state: State;
  /** How the client numbers the pieces of texts that were replayed to it. */
  numbers?: Numbers;
}

/** The credential of a connection, as it is stored with the socket. Times are in seconds since 1970. */
export interface Credential extends Pick<Claims, "user" | "tokenId" | "anchor" | "issuedAt" | "expiresAt"> {
  /** When to send `synap.token_expiring`; undefined: it was sent, or the credential does not expire. */
  warnsAt?: number;
}

/** A subscription replays the log first, then it is live, until one side closes it. */
export type State = Replaying | { name: "live" } | { name: "closed" };

export interface Replaying {
  name: "replaying";
  /** Everything up to here was sent. */
  position: Cursor;
  replayed: number;
  /** Notifications are missing that the log no longer contains. */
  isLost: boolean;
  /** For a client that was live and reads slowly: the texts that it has a part of. */
  known?: Record<string, KnownText>;
}

/** A part of a text that a client has: its length in code points, and the number of the next piece. */
export interface KnownText {
  length: number;
  nextIndex: number | undefined;
}

/** The minimum time between two writes of `lastReceivedAt` to the attachment. */
const SAVE_INTERVAL_MS = 5000;

export class Connection {
  readonly socket: WebSocket;
  readonly attachment: Attachment;
  readonly backlog: Backlog;
  /** The Worker holds too much for the client of this event stream. */
  isHeld = false;
  #savedAt: number;

  constructor(socket: WebSocket, attachment: Attachment) {
    this.socket = socket;
    this.attachment = attachment;
    this.backlog = new Backlog(socket);
    this.#savedAt = attachment.lastReceivedAt;
  }

  get user(): string | undefined {
    return this.attachment.credential.user;
  }

  get isLive(): boolean {
    return this.attachment.state.name === "live";
  }

  /** Whether the client acknowledges itself (`synap.v1`). Otherwise delivery counts as acknowledgement. */
  get acknowledges(): boolean {
    return this.attachment.transport === "websocket" && this.attachment.controlFrames;
  }

  /** Whether the client reads slowly, so that the pieces of texts should be joined for it. */
  get isBehind(): boolean {
    return this.isHeld || this.backlog.bytes > MAX_REPLAY_BACKLOG_BYTES;
  }

  /** Change the state, and store it. */
  enter(state: State): void {
    this.attachment.state = state;
    this.save();
  }

  save(): void {
    this.socket.serializeAttachment(this.attachment);
  }

  /** Record that something was received. */
  touch(now: number): void {
    this.attachment.lastReceivedAt = now;
    if (now - this.#savedAt > SAVE_INTERVAL_MS) {
      this.#savedAt = now;
      this.save();
    }
  }

  send(text: string): void {
    this.backlog.beforeSend();
    try {
      this.socket.send(text);
    } catch {
      // The socket is closing: webSocketClose follows.
    }
    this.backlog.afterSend();
  }

  /** Send a control frame, if the client asked for control frames. */
  sendControl(type: string, data: object): void {
    if (this.attachment.controlFrames) this.send(controlFrame(type, data));
  }
}
