/** Whether a publish would be kept, as far as one object can tell. See docs/cloudflare.md. */

import { unavailable } from "./http";
import type { Env } from "./settings";

/** An answer counts for so long, however many ask. */
const FRESH_MS = 1000;

export class Readiness {
  readonly #env: Env;
  #answer: Promise<void> = Promise.resolve();
  #askedAt = -Infinity;
  #isSuspect = false;

  constructor(env: Env) {
    this.#env = env;
  }

  /** A publish was not kept: reading is no longer enough to be ready. */
  suspect(): void {
    this.#isSuspect = true;
  }

  /**
   * Ask one object, at most once a second: it has to be there, and its storage to be readable. After a
   * publish that was not kept, the storage has to take a write, too.
   *
   * @throws RequestError 503.
   */
  async check(): Promise<void> {
    const now = Date.now();
    if (Math.abs(now - this.#askedAt) >= FRESH_MS) {
      this.#askedAt = now;
      this.#answer = this.#ask();
      this.#answer.catch(() => undefined); // whoever waits for it hears of it
    }
    await this.#answer;
  }

  async #ask(): Promise<void> {
    const { CONNECTION_REGISTRY } = this.#env;
    const isSuspect = this.#isSuspect;
    try {
      await CONNECTION_REGISTRY.get(CONNECTION_REGISTRY.idFromName("ready:")).check(isSuspect);
    } catch (error) {
      console.error(`not ready: an object's storage cannot be had: ${String(error)}`);
      this.#isSuspect = true;
      throw unavailable("the storage of rooms cannot be had now");
    }
    if (isSuspect) this.#isSuspect = false;
  }
}

const known = new WeakMap<Env, Readiness>();

export function readinessOf(env: Env): Readiness {
  let readiness = known.get(env);
  if (readiness === undefined) known.set(env, (readiness = new Readiness(env)));
  return readiness;
}
