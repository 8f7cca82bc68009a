/**
 * Who is in a room now, over users and their devices. See PROTOCOL.md, "Presence".
 *
 * A leave is told only after a grace: who reconnects has not left. Changes are coalesced, so that a
 * user whose devices come and go costs the same as one who stays: the watchers share one picture of
 * the room, and each user who differs from it is told once.
 */

/** Who comes back within so long was never away. */
export const GRACE_MS = 5000;
/** A user's changes within so long are told as one. */
export const UPDATE_INTERVAL_MS = 200;
/** So many of a user's devices are listed; of those without a connection, as many are kept. */
const MAX_DEVICES = 64;

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
  /** What all watchers know, and who may differ from it. */
  readonly #published = new Map<string, User>();
  readonly #changed = new Set<string>();

  /** @param leaving from before the object slept. */
  constructor(leaving: Leaving[]) {
    this.#leaving = leaving;
    for (const { user, device } of leaving) this.#devicesOf(user).set(device, 0);
  }

  get leaving(): readonly Leaving[] {
    return this.#leaving;
  }

  users(): User[] {
    return [...this.#users.keys()].sort().map((user) => this.#describe(user));
  }

  /** What all watchers know. */
  state(): User[] {
    return [...this.#published.keys()].sort().map((user) => this.#published.get(user)!);
  }

  /** Nobody watches, or everybody who does knows how things are. */
  markPublished(): void {
    this.#changed.clear();
    this.#published.clear();
    for (const user of this.#users.keys()) this.#published.set(user, this.#describe(user));
  }

  /** A connection from before the object slept: watchers know it. */
  rejoin(user: string, device: string | undefined): void {
    this.join(user, device);
    this.#changed.delete(user);
    this.#published.set(user, this.#describe(user));
  }

  /** What watchers do not know yet, one user after the other; undefined: they know all. */
  nextChange(): Change | undefined {
    for (const name of this.#changed) {
      this.#changed.delete(name);
      const before = this.#published.get(name);
      if (!this.#users.has(name)) {
        this.#published.delete(name);
        if (before !== undefined) return { event: "leave", user: name, connections: 0, devices: [] };
        continue;
      }
      const now = this.#describe(name);
      this.#published.set(name, now);
      if (before === undefined) return { event: "join", ...now };
      if (String(before.devices) !== String(now.devices)) return { event: "update", ...now };
    }
    return undefined;
  }

  /** A connection came. */
  join(user: string, device: string | undefined): void {
    this.#leaving = this.#leaving.filter((each) => each.user !== user || each.device !== device);
    const devices = this.#devicesOf(user);
    devices.set(device, (devices.get(device) ?? 0) + 1);
    this.#changed.add(user);
  }

  /** A connection has ended; returns whether its device begins to leave. */
  leave(user: string, device: string | undefined, now: number): boolean {
    const devices = this.#devicesOf(user);
    const left = Math.max(0, (devices.get(device) ?? 0) - 1);
    devices.set(device, left);
    this.#changed.add(user);
    if (left > 0) return false;
    if (devices.size > MAX_DEVICES) {
      // Devices that come and go must not pile up: the first one without a connection goes.
      const [oldest] = [...devices].find(([, count]) => count === 0)!;
      devices.delete(oldest);
      this.#leaving = this.#leaving.filter((each) => each.user !== user || each.device !== oldest);
      if (oldest === device) return true;
    }
    const leaving = { user, until: now + GRACE_MS, ...(device === undefined ? {} : { device }) };
    this.#leaving = [...this.#leaving, leaving];
    return true;
  }

  /** Those whose grace is over have left; returns whether there were any. */
  sweep(now: number): boolean {
    const gone = this.#leaving.filter((each) => each.until <= now);
    if (gone.length === 0) return false;
    this.#leaving = this.#leaving.filter((each) => each.until > now);
    for (const { user, device } of gone) {
      const devices = this.#devicesOf(user);
      devices.delete(device);
      if (devices.size === 0) this.#users.delete(user);
      this.#changed.add(user);
    }
    return true;
  }

  #devicesOf(user: string): Map<string | undefined, number> {
    let devices = this.#users.get(user);
    if (devices === undefined) this.#users.set(user, (devices = new Map()));
    return devices;
  }

  #describe(user: string): User {
    const devices = this.#devicesOf(user);
    const names = [...devices.keys()].filter((name) => name !== undefined).sort().slice(0, MAX_DEVICES);
    return { user, connections: [...devices.values()].reduce((sum, n) => sum + n, 0), devices: names };
  }
}
