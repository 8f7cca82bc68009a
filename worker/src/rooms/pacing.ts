/**
 * Paces the pieces of texts that grow: what is published within an interval is stored and delivered together.
 *
 * The first piece of a text is stored immediately. Those that follow within the interval wait for its end, or for the
 * next notification that is no such piece, and are answered when they are stored. So a text of 200 pieces a second
 * costs 25 writes of the object's storage, and each subscriber 25 messages.
 */

import type { Publication, PublishResult } from "../stores/entries";

/** Pieces that wait are stored early when they have this size. */
const MAX_PENDING_BYTES = 64 * 1024;
/** The texts whose pace is known. */
const MAX_TEXTS = 1000;

type Store = (publications: Publication[]) => PublishResult[];

interface Call {
  publications: Publication[];
  resolve: (results: PublishResult[]) => void;
  reject: (error: unknown) => void;
}

export class Pacer {
  #calls: Call[] = [];
  #bytes = 0;
  #timer: ReturnType<typeof setTimeout> | null = null;
  /** When a piece of each key was stored last, in ms since 1970. */
  readonly #storedAt = new Map<string, number>();

  /**
   * @param store stores and delivers publications: all, or none and throws.
   * @param intervalMs 0 stores every piece immediately.
   */
  constructor(
    private readonly store: Store,
    private readonly intervalMs: number,
  ) {}

  /** Store publications, now or at the end of the interval. */
  async publish(publications: Publication[]): Promise<PublishResult[]> {
    const waitMs = this.#waitMs(publications);
    return new Promise((resolve, reject) => {
      this.#calls.push({ publications, resolve, reject });
      this.#bytes += publications.reduce((sum, { bytes }) => sum + bytes, 0);
      if (waitMs === 0 || this.#bytes >= MAX_PENDING_BYTES) this.#flush();
      else this.#timer ??= setTimeout(() => this.#flush(), waitMs);
    });
  }

  /** Return how long publications may wait; 0 unless all are pieces of texts that grow quickly. */
  #waitMs(publications: Publication[]): number {
    const now = Date.now();
    let since = now;
    for (const { fold } of publications) {
      const storedAt = fold?.mode === "append" && !fold.final ? this.#storedAt.get(fold.key) : undefined;
      // In the future if the clock was set back.
      if (storedAt === undefined || storedAt > now || now - storedAt >= this.intervalMs) return 0;
      since = Math.min(since, storedAt);
    }
    return since + this.intervalMs - now;
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = null;
    const calls = this.#calls;
    this.#calls = [];
    this.#bytes = 0;
    try {
      const publications = calls.flatMap((call) => call.publications);
      const results = this.store(publications);
      this.#record(publications);
      let first = 0;
      for (const { publications: { length }, resolve } of calls) resolve(results.slice(first, (first += length)));
    } catch (error) {
      for (const { reject } of calls) reject(error);
    }
  }

  #record(publications: Publication[]): void {
    const now = Date.now();
    for (const { fold } of publications) {
      if (fold?.mode !== "append") continue;
      this.#storedAt.delete(fold.key);
      if (!fold.final) this.#storedAt.set(fold.key, now);
    }
    for (const [key] of this.#storedAt) {
      if (this.#storedAt.size <= MAX_TEXTS) break;
      this.#storedAt.delete(key);
    }
  }
}
