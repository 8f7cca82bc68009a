/** The deadlines of a room and its one alarm, which wakes the object for the next of them. */

import { CloseCode } from "../protocol/control";
import type { Settings } from "../settings";
import type { Log } from "../stores/log";
import type { Connection } from "./connection";

/** The furthest alarm. The runtime supports times until 2189 only, and a token may expire later. */
const MAX_ALARM_MS = 30 * 86_400_000;

export class Deadlines {
  #alarmAt: number | undefined;

  constructor(
    private readonly ctx: DurableObjectState,
    private readonly settings: Settings,
    private readonly log: Log,
  ) {}

  /** Read the stored alarm, after the object was started. */
  async load(): Promise<void> {
    this.#alarmAt = (await this.ctx.storage.getAlarm()) ?? undefined;
  }

  /** Record that the alarm has fired. */
  fired(): void {
    this.#alarmAt = undefined;
  }

  get isScheduled(): boolean {
    return this.#alarmAt !== undefined;
  }

  /** Wake the object no later than at this time, in ms since 1970; Infinity: never. */
  schedule(at: number): void {
    // Whole milliseconds: an alarm that fires early, and is set to the same fractional time again, never fires.
    const next = Math.min(Math.ceil(at), Date.now() + MAX_ALARM_MS);
    if (at === Infinity || next >= (this.#alarmAt ?? Infinity)) return;
    this.#alarmAt = next;
    void this.ctx.storage.setAlarm(next);
  }

  /** @param otherwise when to sweep if the log is empty, in ms since 1970. */
  scheduleSweep(otherwise = Infinity): void {
    // While the log has data, there is always an alarm. It schedules the sweep of later entries.
    if (this.#alarmAt === undefined) this.schedule(this.log.nextSweep() ?? otherwise);
  }

  /** Return the close code of a connection whose deadline has passed; undefined: none has. */
  passed(connection: Connection, now: number): CloseCode | undefined {
    if (this.#idleDeadline(connection) <= now) return CloseCode.IDLE_TIMEOUT;
    const { expiresAt } = connection.attachment.credential;
    return expiresAt !== undefined && expiresAt * 1000 <= now ? CloseCode.TOKEN_EXPIRED : undefined;
  }

  /** Return the next deadline of a connection, in ms since 1970; Infinity: there is none. */
  next(connection: Connection): number {
    const { expiresAt = Infinity, warnsAt = Infinity } = connection.attachment.credential;
    return Math.min(this.#nextIdleCheck(connection), Math.min(expiresAt, warnsAt) * 1000);
  }

  /**
   * Return the idle deadline of a connection, in ms since 1970.
   *
   * An object can neither send protocol pings nor observe those of a client. So the idle timeout applies only to
   * clients that send text pings; the runtime detects other dead connections.
   */
  #idleDeadline({ socket, attachment }: Connection): number {
    // The runtime answers text pings during hibernation.
    const pingedAt = this.ctx.getWebSocketAutoResponseTimestamp(socket)?.getTime();
    if (this.settings.idleTimeoutS === 0 || attachment.transport === "sse" || pingedAt === undefined) return Infinity;
    return Math.max(attachment.lastReceivedAt, pingedAt) + this.settings.idleTimeoutS * 1000;
  }

  /** Return when to check for the idle timeout. A client that has not sent a ping yet is checked once. */
  #nextIdleCheck(connection: Connection): number {
    const { lastReceivedAt, transport } = connection.attachment;
    const first = lastReceivedAt + this.settings.idleTimeoutS * 1000;
    if (this.settings.idleTimeoutS > 0 && transport === "websocket" && first > Date.now()) return first;
    return this.#idleDeadline(connection);
  }
}
