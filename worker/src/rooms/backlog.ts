/** The backlog of a connection, and which connections are slow consumers. See PROTOCOL.md, "Limits". */

/** The largest backlog of a subscriber; above it, it is a slow consumer. */
const MAX_BACKLOG_BYTES = 1024 * 1024;
/** A replay continues when the backlog is not above this. Live pieces of texts are joined above it. */
export const MAX_REPLAY_BACKLOG_BYTES = 256 * 1024;
/** A subscriber that reads nothing of its backlog for this long is a slow consumer. */
const SLOW_CONSUMER_TIMEOUT_MS = 20_000;
/** The largest total backlog of a room, and of one user in it. An object has 128 MB of memory. */
const MAX_ROOM_BACKLOG_BYTES = 32 * 1024 * 1024;
const MAX_USER_BACKLOG_BYTES = 8 * 1024 * 1024;

/** What was sent to a socket, and is not read yet. */
export class Backlog {
  readonly #socket: WebSocket;
  #lastBytes = 0;
  /** The time since which the client has read nothing. */
  #stalledSince = Date.now();

  constructor(socket: WebSocket) {
    this.#socket = socket;
  }

  /** The size; 0 on a runtime that does not report it (before November 2026). */
  get bytes(): number {
    return (this.#socket.bufferedAmount as number | undefined) ?? 0;
  }

  /** Record that something is about to be sent: what was read until now no longer shows afterwards. */
  beforeSend(): void {
    this.#observe(Date.now());
  }

  afterSend(): void {
    this.#lastBytes = this.bytes;
  }

  /** Whether the client has read nothing for too long. */
  isStalled(now: number): boolean {
    this.#observe(now);
    return now - this.#stalledSince > SLOW_CONSUMER_TIMEOUT_MS;
  }

  /** Update the stall time: the client has read something if the backlog is smaller than after the last send. */
  #observe(now: number): void {
    const bytes = this.bytes;
    if (bytes === 0 || bytes < this.#lastBytes) this.#stalledSince = now;
    this.#lastBytes = bytes;
  }
}

interface Subscriber {
  readonly backlog: Backlog;
  readonly user: string | undefined;
}

/** Return the slow consumers: those over their own limit, and the largest backlogs while a total is over its limit. */
export function slowConsumers<Each extends Subscriber>(subscribers: Iterable<Each>, now: number): Each[] {
  const found: Each[] = [];
  const backlogged: { subscriber: Each; bytes: number }[] = [];
  for (const subscriber of subscribers) {
    const { bytes } = subscriber.backlog;
    if (bytes > MAX_BACKLOG_BYTES || subscriber.backlog.isStalled(now)) found.push(subscriber);
    else if (bytes > 0) backlogged.push({ subscriber, bytes });
  }
  // Sort ascending, so that the largest backlogs are the ones that exceed the totals.
  backlogged.sort((one, other) => one.bytes - other.bytes);
  const byUser = new Map<string, number>();
  let sum = 0;
  for (const { subscriber, bytes } of backlogged) {
    const user = subscriber.user ?? "";
    const userBytes = (byUser.get(user) ?? 0) + bytes;
    const isOver = user !== "" && userBytes > MAX_USER_BACKLOG_BYTES;
    if (isOver || sum + bytes > MAX_ROOM_BACKLOG_BYTES) {
      found.push(subscriber);
      continue;
    }
    sum += bytes;
    byUser.set(user, userBytes);
  }
  return found;
}
