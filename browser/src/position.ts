/** A subscriber's position in the room, and the ids that it has received, over all its connections. */
import { isCursor } from "./options.js";
import type { Delivered } from "./protocol.js";

const SEEN_IDS = 4096;
/** After this many consecutive interrupted replays, the next one starts where the last one ended. */
const MAX_INTERRUPTED_REPLAYS = 3;

const split = (cursor: unknown) => `${cursor as string}`.split(/-(?=\d+$)/);

/** Compare two cursors: negative if the first is earlier; NaN: not of the same log. See PROTOCOL.md, "Terminology". */
export function order(cursor: unknown, other: unknown): number {
  const [log, number] = split(cursor);
  const [otherLog, otherNumber] = split(other);
  return log === otherLog ? +number! - +otherNumber! : NaN;
}

export class Position {
  /** The cursor of the last notification. */
  cursor: string | undefined;
  /** The cursor for the next connection: nothing is missed after it, and the server can report a gap. */
  resume: string | undefined;
  readonly #start: string | undefined;
  #gapChecked = true;
  #interrupts = 0;
  #starts = 0; // a cursor to start from, connections that were opened, and replays that ended
  readonly #seen = new Set<string>();

  /** @param start a cursor, `earliest`, `latest`, or undefined for the room's default. */
  constructor(start: string | undefined) {
    this.#start = start;
    if (start !== "earliest" && start !== "latest") this.resume = start;
    if (this.resume) this.#starts++;
  }

  /** The `after` parameter of the next connection. */
  get after(): string | undefined {
    return this.resume ?? this.#start;
  }

  /** Whether a gap matters. At its start, a first connection without a cursor has missed nothing. */
  get reportsGaps(): boolean {
    return this.#starts > 1;
  }

  /** @param speaksV1 the server will report the end of the replay, and whether there was a gap. */
  connected(speaksV1: boolean): void {
    this.#starts++;
    // Without a position there is no gap to report.
    this.#gapChecked = !speaksV1 || this.resume === undefined;
  }

  /** Handle the end of the replay. */
  replayComplete(cursor: unknown): void {
    this.#starts++;
    this.#gapChecked = true;
    this.#interrupts = 0;
    this.moveTo(cursor);
  }

  /**
   * Handle the loss of the connection. The server reports a gap only at the end of a replay, so an interrupted
   * replay is requested again from its start.
   *
   * @returns whether there may be a gap that the server will not report.
   */
  lost(): boolean {
    if (this.#gapChecked || this.cursor === undefined || this.resume === this.cursor) return false;
    if (++this.#interrupts < MAX_INTERRUPTED_REPLAYS) return false;
    this.#interrupts = 0;
    this.resume = this.cursor;
    return true;
  }

  moveTo(cursor: unknown): void {
    if (!isCursor(cursor)) return;
    this.cursor = cursor;
    if (this.#gapChecked) this.resume = cursor;
  }

  /** Record the id, and return whether it is new. A notification without an id is always new. */
  isNew({ id }: Delivered): boolean {
    if (id === undefined) return true;
    if (this.#seen.has(id)) return false;
    this.#seen.add(id);
    if (this.#seen.size > SEEN_IDS) this.#seen.delete(this.#seen.values().next().value as string);
    return true;
  }
}
