/** The devices of a room's users, with their acknowledged offsets. */

const PREFIX = "device "; // of the storage key of a Device; followed by its name
/** The number of devices that a room stores. The least recently seen is removed first. */
const MAX_DEVICES = 64;
/** A device that was not seen for this long is forgotten. */
const DEVICE_AGE_MS = 30 * 86_400_000;

/** When a device was last seen, in ms since 1970, and its acknowledged offset. */
interface Device {
  lastSeen: number;
  acknowledged: number;
}

export class Devices {
  constructor(private readonly kv: SyncKvStorage) {}

  /** Return the acknowledged offset of a device; undefined for an unknown one. */
  acknowledged(name: string): number | undefined {
    return this.kv.get<Device>(PREFIX + name)?.acknowledged;
  }

  /** Store that a device is seen now, and its acknowledged offset. An earlier one changes nothing. */
  advance(name: string, offset: number): void {
    const acknowledged = Math.max(this.acknowledged(name) ?? 0, offset);
    this.kv.put<Device>(PREFIX + name, { lastSeen: Date.now(), acknowledged });
    const others = this.#all().filter(([key]) => key !== PREFIX + name);
    const excess = others.sort(([, one], [, other]) => other.lastSeen - one.lastSeen).slice(MAX_DEVICES - 1);
    for (const [key] of excess) this.kv.delete(key);
  }

  /** Whether a device has expired at a reading of the clock (ms since 1970). */
  hasExpired(now: number): boolean {
    return this.#all().some(([, device]) => isExpired(device, now));
  }

  /** Remove the devices that have expired at a reading of the clock (ms since 1970). */
  removeExpired(now: number): void {
    for (const [key, device] of this.#all()) if (isExpired(device, now)) this.kv.delete(key);
  }

  /** Return when the next device expires, in ms since 1970; Infinity: there is none. */
  nextExpiry(): number {
    return Math.min(Infinity, ...this.#all().map(([, { lastSeen }]) => lastSeen + DEVICE_AGE_MS + 1));
  }

  #all(): [string, Device][] {
    return [...this.kv.list<Device>({ prefix: PREFIX })];
  }
}

function isExpired({ lastSeen }: Device, now: number): boolean {
  return lastSeen <= now - DEVICE_AGE_MS;
}
