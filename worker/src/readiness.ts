/** Readiness: whether the storage of Durable Objects works, checked with one object. See docs/cloudflare.md. */

import { memoize } from "./memoize";
import { unavailable } from "./messages";

/** The time for which a result is reused. */
const FRESH_MS = 1000;

export class Readiness {
  readonly #env: Env;
  #answer: Promise<void> = Promise.resolve();
  #askedAt = -Infinity;
  #isSuspect = false;

  constructor(env: Env) {
    this.#env = env;
  }

  /** Report a publish that was not stored: the next check must also write. */
  suspect(): void {
    this.#isSuspect = true;
  }

  /**
   * Check one object, at most once a second: it must respond, and its storage must be readable. After a publish
   * that was not stored, the storage must be writable, too.
   *
   * @throws RequestError 503.
   */
  async check(): Promise<void> {
    const now = Date.now();
    if (Math.abs(now - this.#askedAt) >= FRESH_MS) {
      this.#askedAt = now;
      this.#answer = this.#ask();
      this.#answer.catch(() => undefined); // handled by the callers that await it
    }
    await this.#answer;
  }

  async #ask(): Promise<void> {
    const { CONNECTION_REGISTRY } = this.#env;
    const isSuspect = this.#isSuspect;
    try {
      await CONNECTION_REGISTRY.get(CONNECTION_REGISTRY.idFromName("ready:")).check(isSuspect);
    } catch (error) {
      console.error(`not ready: Durable Object storage unavailable: ${String(error)}`);
      this.#isSuspect = true;
      throw unavailable("room storage temporarily unavailable");
    }
    if (isSuspect) this.#isSuspect = false;
  }
}

/** Return the readiness of an environment, on this machine. */
export const readinessOf = memoize((env: Env) => new Readiness(env));
