/** Subscriptions: replay the log, then deliver live. See PROTOCOL.md, "Subscribing". */

import { count } from "../metrics";
import { SUBSCRIBED } from "../protocol/control";
import { cursorText, furthest, parseCursor, type Cursor } from "../protocol/cursor";
import { isRequestRoom } from "../protocol/rooms";
import type { Log } from "../stores/log";
import type { Connection } from "./connection";
import { MORE, type SubscribeRequest } from "./stub";

/** A replay continues when the backlog is not above this. */
const MAX_REPLAY_BACKLOG_BYTES = 256 * 1024;
const REPLAY_PAUSE_MS = 20;
const PAGE_SIZE = 256;

export class Subscriptions {
  /** @param closeSlow closes a connection whose client does not read its replay. */
  constructor(
    private readonly env: Env,
    private readonly room: string,
    private readonly log: Log,
    private readonly closeSlow: (connection: Connection) => void,
  ) {}

  /** Return the position to start from. */
  startCursor({ after, isLost }: SubscribeRequest, device: string | undefined): Cursor {
    const log = this.log;
    if (after === "latest") return log.head();
    if (after === "earliest" || isLost) return log.earliest();
    if (after !== undefined) return parseCursor(after) ?? log.earliest();
    if (isRequestRoom(this.room)) return log.earliest();
    return log.getAck(device) ?? log.earliest();
  }

  /** Register a device at the position that it starts from. Return whether the room stores its position. */
  registerDevice(device: string | undefined, position: Cursor): boolean {
    const stored = this.#ackDevice(device);
    if (stored === undefined) return false;
    this.log.registerDevice(stored, position);
    return true;
  }

  /**
   * Send the next pages of the log, as long as the client reads them; then switch to live delivery.
   *
   * Notifications published meanwhile need no queue, because they are in the log. Reading the last page and
   * switching to live delivery happen without an await, so nothing can be published in between.
   */
  replay(connection: Connection): void {
    const { state, transport } = connection.attachment;
    if (state.name !== "replaying") return;
    for (;;) {
      const page = this.log.read(state.position, PAGE_SIZE);
      if (!page.recovered) {
        state.isLost = true;
        state.position = this.log.earliest();
      }
      for (const entry of page.entries) connection.send(entry.text);
      const last = page.entries.at(-1);
      if (last !== undefined) {
        state.position = last.cursor;
        state.replayed += page.entries.length;
        count(this.env, "delivery", "replay", page.entries.length);
        this.delivered(connection, last.cursor);
      }
      if (!page.more) break;
      if (transport === "sse") {
        connection.save();
        connection.send(MORE);
        return;
      }
      if (connection.backlog.bytes > MAX_REPLAY_BACKLOG_BYTES) {
        connection.save();
        this.resumeReplay(connection);
        return;
      }
    }
    const { position, replayed, isLost } = state;
    connection.enter({ name: "live" });
    // Everything up to the head was read. An empty room has a position, too.
    const cursor = cursorText(furthest(position, this.log.head()));
    connection.sendControl(SUBSCRIBED, { room: this.room, cursor, replayed, recovered: !isLost });
  }

  /** Continue the replay as soon as the client has read enough. */
  resumeReplay(connection: Connection): void {
    setTimeout(() => {
      if (connection.attachment.state.name !== "replaying") return;
      if (connection.backlog.bytes <= MAX_REPLAY_BACKLOG_BYTES) this.replay(connection);
      else if (connection.backlog.isStalled(Date.now())) this.closeSlow(connection);
      else this.resumeReplay(connection);
    }, REPLAY_PAUSE_MS);
  }

  /** Handle an acknowledgement of the client. */
  acknowledge({ attachment }: Connection, text: string): void {
    const { state, device } = attachment;
    const cursor = parseCursor(text);
    const sent = state.name === "replaying" ? state.position : this.log.head();
    if (cursor === undefined || cursor.epoch !== sent.epoch || cursor.offset > sent.offset) return;
    this.log.ack(cursor, this.#ackDevice(device));
  }

  /** Record that entries up to a position were sent: for a client that does not acknowledge, they are acknowledged. */
  delivered(connection: Connection, position: Cursor): void {
    if (!connection.acknowledges) this.log.ack(position, this.#ackDevice(connection.attachment.device));
  }

  /** Return the device whose acknowledgements are stored: none in a request's room, whose replays are complete. */
  #ackDevice(device: string | undefined): string | undefined {
    return isRequestRoom(this.room) ? undefined : device;
  }
}
