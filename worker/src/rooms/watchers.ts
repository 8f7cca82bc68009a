/** Presence frames: who is in the room, for the connections that asked for it. See PROTOCOL.md, "Presence". */

import { controlFrame, PRESENCE } from "../protocol/control";
import type { Connection } from "./connection";
import type { Deadlines } from "./deadlines";
import type { Hub } from "./hub";
import { Presence, UPDATE_INTERVAL_MS, type Leaving, type User } from "./presence";

/** The number of presence frames that are sent in a row, and per second. In a larger room they are delayed. */
const MAX_FRAMES = 500;
const MAX_FRAMES_PER_S = 5000;
/** The additional time after which users who left are removed from a room without watchers. */
const UNWATCHED_LEAVE_MS = 3_600_000;
const LEAVING = "leaving"; // the storage key of the devices in their grace period
/** The number of devices in their grace period that are stored, so that they survive hibernation. */
const MAX_LEAVING = 100;

export class Watchers {
  readonly #presence: Presence;
  #isPaused = false; // the next batch of changes is scheduled

  constructor(
    private readonly kv: SyncKvStorage,
    private readonly hub: Hub,
    private readonly deadlines: Deadlines,
  ) {
    this.#presence = new Presence(kv.get<Leaving[]>(LEAVING) ?? []);
  }

  users(): User[] {
    this.sweep();
    return this.#presence.users();
  }

  /** Take the restored state as published: the watchers have received it before hibernation. */
  restored(): void {
    this.#presence.markPublished();
  }

  /** Add a connection from before hibernation. */
  rejoin({ attachment: { presentAs, device } }: Connection): void {
    if (presentAs !== undefined) this.#presence.rejoin(presentAs, device);
  }

  join({ attachment: { presentAs, device } }: Connection): void {
    if (presentAs === undefined) return;
    this.#presence.join(presentAs, device);
    this.#save();
    this.#broadcast();
  }

  leave({ attachment: { presentAs, device } }: Connection): void {
    this.sweep();
    if (presentAs === undefined) return;
    if (this.#presence.leave(presentAs, device, Date.now())) {
      this.#save();
      this.scheduleLeave();
    }
    this.#broadcast();
  }

  /** Send the state of the room to a new watcher. */
  sendState(watcher: Connection): void {
    this.sweep();
    this.scheduleLeave();
    watcher.sendControl(PRESENCE, { event: "state", users: this.#presence.state() });
  }

  /** Remove the devices whose grace period is over, and send the changes. */
  sweep(): void {
    if (!this.#presence.sweep(Date.now())) return;
    this.#save();
    this.#broadcast();
  }

  /** Schedule the end of the next grace period. Without watchers it is delayed, because requests sweep, too. */
  scheduleLeave(): void {
    const [first] = this.#presence.leaving;
    if (first === undefined) return;
    const isWatched = this.hub.watchers().length > 0;
    this.deadlines.schedule(first.until + (isWatched ? 0 : UNWATCHED_LEAVE_MS));
  }

  /** Send the changes to the watchers, in batches with pauses. */
  #broadcast(): void {
    if (this.#isPaused) return;
    const watchers = this.hub.watchers();
    if (watchers.length === 0) return this.#presence.markPublished();
    let written = 0;
    while (written < MAX_FRAMES) {
      const change = this.#presence.nextChange();
      if (change === undefined) break;
      const frame = controlFrame(PRESENCE, change);
      for (const watcher of watchers) watcher.send(frame);
      written += watchers.length;
    }
    if (written === 0) return;
    this.#isPaused = true;
    setTimeout(
      () => {
        this.#isPaused = false;
        this.#broadcast();
      },
      Math.max(UPDATE_INTERVAL_MS, (written / MAX_FRAMES_PER_S) * 1000),
    );
  }

  /** Store the devices in their grace period. The others are stored with their sockets. */
  #save(): void {
    const leaving = this.#presence.leaving.slice(-MAX_LEAVING);
    if (leaving.length > 0) this.kv.put(LEAVING, leaving);
    else if (this.kv.get(LEAVING) !== undefined) this.kv.delete(LEAVING);
  }
}
