/** Subscriptions: replay the log, then deliver live. See PROTOCOL.md, "Subscribing". */

import { count } from "../metrics";
import { SUBSCRIBED } from "../protocol/control";
import { cursorText, furthest, parseCursor, type Cursor } from "../protocol/cursor";
import { isRequestRoom } from "../protocol/rooms";
import type { Entry } from "../stores/entries";
import { restOf } from "../stores/folds";
import type { Log } from "../stores/log";
import { MAX_REPLAY_BACKLOG_BYTES } from "./backlog";
import type { Connection, KnownText, Numbers, Replaying } from "./connection";
import { countFrom } from "./numbers";
import { MORE, type SubscribeRequest } from "./stub";

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
        if (state.known !== undefined) return this.closeSlow(connection);
        state.isLost = true;
        state.position = this.log.earliest();
      }
      for (const entry of page.entries) connection.send(replayed(connection, state, entry));
      const last = page.entries.at(-1);
      if (last !== undefined) {
        state.position = last.cursor;
        state.replayed += page.entries.length;
        count(this.env, "delivery", "replay", page.entries.length);
        this.delivered(connection, last.cursor);
      }
      if (page.more && transport === "sse") {
        connection.save();
        connection.send(MORE);
        return;
      }
      // A live subscriber with so much unread would be a slow consumer: entries with whole texts are large.
      if (connection.backlog.bytes > MAX_REPLAY_BACKLOG_BYTES) {
        connection.save();
        this.resumeReplay(connection);
        return;
      }
      if (!page.more) break;
    }
    const { position, isLost, known } = state;
    connection.enter({ name: "live" });
    if (known !== undefined) return;
    // Everything up to the head was read. An empty room has a position, too.
    const cursor = cursorText(furthest(position, this.log.head()));
    connection.sendControl(SUBSCRIBED, { room: this.room, cursor, replayed: state.replayed, recovered: !isLost });
  }

  /**
   * Let a live client that reads slowly read the log until it has caught up: there, the pieces of a text that it does
   * not have are one entry.
   */
  fallBehind(connection: Connection): void {
    const { numbers = {} } = connection.attachment;
    const [known, kept]: [Record<string, KnownText>, Numbers] = [{}, {}];
    for (const { id, mode, length, deliveries, lastIndex } of this.log.openKeys()) {
      if (mode !== "append") continue;
      const start = numbers[id];
      if (start !== undefined) kept[id] = start;
      const last = start === undefined ? lastIndex : deliveries - start;
      known[id] = { length, nextIndex: last === undefined ? undefined : last + 1 };
    }
    connection.attachment.numbers = kept;
    connection.enter({ name: "replaying", position: this.log.head(), replayed: 0, isLost: false, known });
    if (connection.attachment.transport === "websocket") this.resumeReplay(connection);
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

/** Return an entry of the log for a client: the whole text of a key, or what it does not have. */
function replayed(connection: Connection, { known }: Replaying, entry: Entry): string {
  const { piece, text } = entry;
  if (piece === undefined) return text;
  const part = known?.[piece.textId];
  const { length, nextIndex } = part ?? { length: 0, nextIndex: 0 };
  countFrom(connection, entry, nextIndex);
  if (known !== undefined) {
    known[piece.textId] = { length: piece.length, nextIndex: nextIndex === undefined ? undefined : nextIndex + 1 };
  }
  return part === undefined ? text : restOf(text, length, nextIndex);
}
