/**
 * Who is in a room now, over users and their devices. See PROTOCOL.md, "Presence".
 *
 * A leave is told only after a grace: who reconnects has not left.
 */

/** Who comes back within so long was never away. */
export const GRACE_MS = 5000;

export interface User {
  user: string;
  connections: number;
  devices: string[];
}

export interface Change extends User {
  event: "join" | "update" | "leave";
}

/** A user's device without a connection, until when it has not left yet (ms since 1970). */
export interface Leaving {
  user: string;
  device?: string;
  until: number;
}

export class Presence {
  /** By device, how many connections a user has; those without a name are under undefined. */
  readonly #users = new Map<string, Map<string | undefined, number>>();
  #leaving: Leaving[];

  /** @param leaving from before the object slept. */
  constructor(leaving: Leaving[]) {
    this.#leaving = leaving;
    for (const { user, device } of leaving) this.#devicesOf(user).set(device, 0);
  }

  get leaving(): readonly Leaving[] {
    return this.#leaving;
  }

  users(): User[] {
    return [...this.#users.keys()].sort().map((user) => this.#described(user));
  }

  /** A connection came; undefined: that tells nobody anything new. */
  join(user: string, device: string | undefined): Change | undefined {
    this.#leaving = this.#leaving.filter((each) => each.user !== user || each.device !== device);
    const event = this.#users.has(user) ? "update" : "join";
    const devices = this.#devicesOf(user);
    const isNew = !devices.has(device);
    devices.set(device, (devices.get(device) ?? 0) + 1);
    return isNew ? { event, ...this.#described(user) } : undefined;
  }

  /** A connection has ended; returns whether its device begins to leave. */
  leave(user: string, device: string | undefined, now: number): boolean {
    const devices = this.#devicesOf(user);
    const left = Math.max(0, (devices.get(device) ?? 0) - 1);
    devices.set(device, left);
    if (left > 0) return false;
    const leaving = { user, until: now + GRACE_MS, ...(device === undefined ? {} : { device }) };
    this.#leaving = [...this.#leaving, leaving];
    return true;
  }

  /** Those whose grace is over have left. */
  sweep(now: number): Change[] {
    const gone = this.#leaving.filter((each) => each.until <= now);
    this.#leaving = this.#leaving.filter((each) => each.until > now);
    return gone.map(({ user, device }) => {
      const devices = this.#devicesOf(user);
      devices.delete(device);
      const event = devices.size > 0 ? "update" : "leave";
      const change: Change = { event, ...this.#described(user) };
      if (event === "leave") this.#users.delete(user);
      return change;
    });
  }

  #devicesOf(user: string): Map<string | undefined, number> {
    let devices = this.#users.get(user);
    if (devices === undefined) this.#users.set(user, (devices = new Map()));
    return devices;
  }

  #described(user: string): User {
    const devices = this.#devicesOf(user);
    const names = [...devices.keys()].filter((name) => name !== undefined).sort();
    return { user, connections: [...devices.values()].reduce((sum, n) => sum + n, 0), devices: names };
  }
}
