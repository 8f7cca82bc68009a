/**
 * Presence: the users in a room, and their devices. See PROTOCOL.md, "Presence".
 *
 * A leave is published after a grace period, so that a reconnect is not a leave. Changes are coalesced: all
 * watchers have received the same state of the room, and each user who differs from it is published once per
 * interval. So a user whose devices join and leave all the time costs no more than one change per interval.
 */

/** The grace period: a user who reconnects within it has not left. */
export const GRACE_MS = 5000;
/** The interval in which the changes of a user are coalesced. */
export const UPDATE_INTERVAL_MS = 200;
/** The devices of a user that are listed, and those without a connection that are remembered. */
const MAX_DEVICES = 64;

export interface User {
  user: string;
  connections: number;
  devices: string[];
}

export interface Change extends User {
  event: "join" | "update" | "leave";
}

/** A user's device without a connection, and the end of its grace period (ms since 1970). */
export interface Leaving {
  user: string;
  device?: string;
  until: number;
}

export class Presence {
  /** The connections of each user by device; undefined is the device without a name. */
  readonly #users = new Map<string, Map<string | undefined, number>>();
  #leaving: Leaving[];
  /** The state that the watchers have received, and the users who may differ from it. */
  readonly #published = new Map<string, User>();
  readonly #changed = new Set<string>();

  /** @param leaving the stored devices in their grace period. */
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

  /** Return the state that the watchers have received. */
  state(): User[] {
    return [...this.#published.keys()].sort().map((user) => this.#published.get(user)!);
  }

  /** Take the current state as published, because there is no watcher, or each has received it. */
  markPublished(): void {
    this.#changed.clear();
    this.#published.clear();
    for (const user of this.#users.keys()) this.#published.set(user, this.#describe(user));
  }

  /** Add a connection from before hibernation, which watchers have received. */
  rejoin(user: string, device: string | undefined): void {
    this.join(user, device);
    this.#changed.delete(user);
    this.#published.set(user, this.#describe(user));
  }

  /** Return the next change to publish; undefined: there is none. */
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

  /** Add a connection. */
  join(user: string, device: string | undefined): void {
    this.#leaving = this.#leaving.filter((each) => each.user !== user || each.device !== device);
    const devices = this.#devicesOf(user);
    devices.set(device, (devices.get(device) ?? 0) + 1);
    this.#changed.add(user);
  }

  /** Remove a connection, and return whether its device's grace period begins. */
  leave(user: string, device: string | undefined, now: number): boolean {
    const devices = this.#devicesOf(user);
    const left = Math.max(0, (devices.get(device) ?? 0) - 1);
    devices.set(device, left);
    this.#changed.add(user);
    if (left > 0) return false;
    if (devices.size > MAX_DEVICES) {
      // Bound the memory of a user whose device names change: forget the oldest device without a connection.
      const [oldest] = [...devices].find(([, count]) => count === 0)!;
      devices.delete(oldest);
      this.#leaving = this.#leaving.filter((each) => each.user !== user || each.device !== oldest);
      if (oldest === device) return true;
    }
    const leaving = { user, until: now + GRACE_MS, ...(device === undefined ? {} : { device }) };
    this.#leaving = [...this.#leaving, leaving];
    return true;
  }

  /** Remove the devices whose grace period is over, and return whether there were any. */
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
