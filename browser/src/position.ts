/** How far a listener has come, over all its connections, and what it has seen. */
import { isCursor } from "./options.js";
import type { Delivered } from "./protocol.js";

const SEEN_IDS = 4096;
/** After so many replays in a row that were cut, the next begins where the last one ended. */
const MAX_INTERRUPTED_REPLAYS = 3;

export class Position {
  /** The furthest that has come. */
  cursor: string | undefined;
  /** From where the next connection misses nothing, and hears whether something is gone. */
  resume: string | undefined;
  private readonly hasStart: boolean;
  private gapChecked = true;
  private cutReplays = 0;
  private connections = 0;
  private readonly seen = new Set<string>();

  /** @param start where to begin: a cursor, `earliest`, `latest`, or nothing for the room's own. */
  constructor(private readonly start: string | undefined) {
    if (start !== "earliest" && start !== "latest") this.resume = start;
    this.hasStart = !!this.resume;
  }

  /** What to ask the server for. */
  get after(): string | undefined {
    return this.resume ?? this.start;
  }

  /** A first listener without a cursor has nothing to miss. */
  get reportsGaps(): boolean {
    return this.connections > 1 || this.hasStart;
  }

  /** @param speaksV1 the server will say when the replay is over, and whether something is gone. */
  connected(speaksV1: boolean): void {
    this.connections++;
    // Who has no position yet has nothing to be told.
    this.gapChecked = !speaksV1 || this.resume === undefined;
  }

  /** The replay is over. */
  replayComplete(cursor: unknown): void {
    this.gapChecked = true;
    this.cutReplays = 0;
    this.moveTo(cursor);
  }

  /**
   * The connection is lost. Only at the end of a replay does the server say whether something is gone, so a
   * replay that was cut is asked for again from where it began.
   *
   * @returns whether something may be gone and nobody will tell.
   */
  lost(): boolean {
    if (this.gapChecked || this.cursor === undefined || this.resume === this.cursor) return false;
    if (++this.cutReplays < MAX_INTERRUPTED_REPLAYS) return false;
    this.cutReplays = 0;
    this.resume = this.cursor;
    return true;
  }

  moveTo(cursor: unknown): void {
    if (!isCursor(cursor)) return;
    this.cursor = cursor;
    if (this.gapChecked) this.resume = cursor;
  }

  /** Whether its id was not seen before; one without an id is always new. */
  isNew({ id }: Delivered): boolean {
    if (id === undefined) return true;
    if (this.seen.has(id)) return false;
    this.seen.add(id);
    if (this.seen.size > SEEN_IDS) this.seen.delete(this.seen.values().next().value as string);
    return true;
  }
}
