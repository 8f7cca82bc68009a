/**
 * `NotificationRoom`: one room as a Durable Object. See PROTOCOL.md, "Subscribing".
 *
 * The object hibernates while idle. Its sockets stay open, with their state in {@link Attachment}. All deferred work
 * is done in one alarm.
 */

import { DurableObject } from "cloudflare:workers";

import { authenticate, authorize, revoked } from "../auth/authorization";
import type { Claims } from "../auth/claims";
import { keyRingOf } from "../auth/keys";
import { Connection, slowConsumers, type Attachment, type SubscribeRequest } from "./connection";
import { matches, registryOf, registriesOf, registerConnection, type Revocation } from "../auth/registry";
import { RequestError, rateLimited } from "../messages";
import { Rate } from "../auth/limits";
import { Log, type Publication, type PublishResult } from "../stores/log";
import { count } from "../metrics";
import { Presence, UPDATE_INTERVAL_MS, type Leaving, type User } from "./presence";
import {
  CLOSE_REASONS,
  CloseCode,
  controlFrame,
  cutReason,
  MAX_CLIENT_TEXT_BYTES,
  PRESENCE,
  parseAction,
  SUBSCRIBED,
  TOKEN_EXPIRING,
} from "../protocol/control";
import { cursorText, parseCursor, type Cursor } from "../protocol/cursor";
import { isRequestRoom } from "../protocol/rooms";
import { hasKeys, settingsOf, type Settings } from "../settings";

/** The header with the {@link SubscribeRequest}, from the Worker to the room. */
export const SUBSCRIBE_REQUEST = "X-Synap-Subscribing";
/** The header of an error response that a WebSocket client receives as a close code instead. */
export const CLOSE_CODE = "X-Synap-Close-Code";
/** Sent to event streams after a page of the log. The Worker sends it back to request the next page. */
export const MORE = "more";

/** A replay continues when the backlog is not above this. */
const MAX_REPLAY_BACKLOG_BYTES = 256 * 1024;
const REPLAY_PAUSE_MS = 20;
const PAGE_SIZE = 256;
const MAX_HISTORY_BYTES = 1024 * 1024;
/**
 * A client is warned this long before its token expires, or when this share of the lifetime that the token had left
 * on arrival remains, whichever is later. Otherwise a token with a lifetime of 30 s, or a cached one that arrives
 * late, would be renewed as soon as it arrives, in an endless loop.
 */
const EXPIRING_S = 30;
const EXPIRING_SHARE = 2 / 3;
/** The furthest alarm. The runtime supports times until 2189 only, and a token may expire later. */
const MAX_ALARM_MS = 30 * 86_400_000;
/** The time for which a revocation is remembered, for handshakes that are in progress. */
const REVOCATION_MS = 60_000;
/** The additional time after which users who left are removed from a room without watchers. */
const UNWATCHED_LEAVE_MS = 3_600_000;
/** The number of presence frames that are sent in a row, and per second. In a larger room they are delayed. */
const PRESENCE_FRAMES = 500;
const PRESENCE_FRAMES_PER_S = 5000;
const LEAVING = "leaving"; // the storage key of the devices in their grace period
/** The number of devices in their grace period that are stored, so that they survive hibernation. */
const MAX_LEAVING = 100;

export class NotificationRoom extends DurableObject<Env> {
  readonly #settings: Settings;
  readonly #room: string;
  readonly #log: Log;
  readonly #presence: Presence;
  #isBroadcastPaused = false; // presence: the next batch of changes is scheduled
  readonly #connections = new Map<WebSocket, Connection>();
  readonly #opening = new Set<string>(); // ids of connections that are being registered
  readonly #messages: Rate;
  #revocations: { revocation: Revocation; until: number }[] = [];
  #alarmAt: number | undefined;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#settings = settingsOf(env);
    this.#messages = new Rate(this.#settings.messagesPerS);
    this.#room = ctx.id.name ?? "";
    this.#log = new Log(ctx.storage, this.#settings, this.#room, ctx.id.toString().slice(0, 16));
    this.#presence = new Presence(ctx.storage.kv.get<Leaving[]>(LEAVING) ?? []);
    ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair("ping", "pong"));
    for (const socket of ctx.getWebSockets()) this.#restore(socket);
    this.#presence.markPublished();
    void ctx.blockConcurrencyWhile(async () => {
      this.#alarmAt = (await ctx.storage.getAlarm()) ?? undefined;
      await this.#closeUnvouched();
    });
  }

  // --- called by the Worker

  /** Store notifications, all or none, and deliver each to every subscriber. */
  async publish(publications: Publication[]): Promise<PublishResult[]> {
    for (const connection of slowConsumers(this.#liveConnections(), Date.now())) {
      this.#close(connection, CloseCode.SLOW_CONSUMER);
    }
    const live = this.#liveConnections();
    const received = live.filter((connection) => !connection.acknowledges);
    const subscribers = this.#connections.size;
    const { publishResults, entries } = this.#log.publish(publications, subscribers, received.length > 0);
    // These messages leave the object after the notifications are durable: the runtime delays its output until then.
    for (const connection of live) {
      for (const entry of entries) connection.send(entry.text);
    }
    const last = entries.at(-1);
    if (last !== undefined) {
      for (const { attachment } of received) {
        if (attachment.device !== undefined) this.#log.ack(last.cursor, this.#ackOf(attachment.device));
      }
    }
    count(this.env, "delivery", "live", live.length * entries.length);
    this.#scheduleSweep();
    return publishResults;
  }

  /** Return the response of `GET …/history`, as JSON. */
  async history(after: Cursor | undefined, limit: number): Promise<string> {
    let position = after ?? this.#log.earliest();
    const head = this.#log.head();
    const texts: string[] = [];
    let [size, recovered, more] = [0, true, true];
    while (more && texts.length < limit && size < MAX_HISTORY_BYTES) {
      const page = this.#log.read(position, limit - texts.length);
      if (!page.recovered) [recovered, position] = [false, this.#log.earliest()];
      more = page.more;
      for (const entry of page.entries) {
        if (size >= MAX_HISTORY_BYTES) {
          more = true;
          break;
        }
        texts.push(entry.text);
        size += entry.bytes;
        position = entry.cursor;
      }
    }
    // Everything up to the head was read. An empty room has a position, too.
    if (!more) position = furthest(position, head);
    const envelope = JSON.stringify({ room: this.#room, cursor: cursorText(position), recovered, more });
    return `${envelope.slice(0, -1)},"notifications":[${texts.join(",")}]}`;
  }

  async connections(): Promise<number> {
    return this.#connections.size;
  }

  async presence(): Promise<{ connections: number; users: User[] }> {
    this.#sweepPresence();
    return { connections: this.#connections.size, users: this.#presence.users() };
  }

  /** Close the connections to which a revocation applies, and return how many. */
  async closeRevoked(revocation: Revocation): Promise<number> {
    const now = Date.now();
    this.#revocations = this.#revocations.filter((each) => each.until > now);
    this.#revocations.push({ revocation, until: now + REVOCATION_MS });
    const found = [...this.#connections.values()].filter(({ attachment }) => matches(revocation, attachment));
    for (const connection of found) this.#close(connection, CloseCode.REVOKED);
    return found.length;
  }

  /** Return the ids of the connections that are open or being opened, for the registries. */
  async connectionIds(): Promise<string[]> {
    return [...[...this.#connections.values()].map(({ attachment }) => attachment.id), ...this.#opening];
  }

  /** Open a WebSocket for the {@link SUBSCRIBE_REQUEST} that the Worker has validated. */
  override async fetch(request: Request): Promise<Response> {
    const header = request.headers.get(SUBSCRIBE_REQUEST) ?? "";
    const subscribeRequest = JSON.parse(decodeURIComponent(header)) as SubscribeRequest;
    try {
      return await this.#subscribe(subscribeRequest);
    } catch (error) {
      if (error instanceof RequestError) return error.response;
      throw error;
    }
  }

  // --- events of sockets

  override async webSocketMessage(socket: WebSocket, message: string | ArrayBuffer): Promise<void> {
    const connection = this.#connectionOf(socket);
    if (connection === undefined) return;
    const now = Date.now();
    connection.touch(now);
    if (connection.attachment.transport === "sse") {
      if (message === MORE) this.#replay(connection);
    } else if (typeof message !== "string" || isTooLong(message)) {
      this.#close(connection, CloseCode.PROTOCOL_VIOLATION);
    } else if (this.#messages.waitS(connection.attachment.id, 1, now) > 0) {
      this.#close(connection, CloseCode.RATE_LIMITED);
    } else if (message === "ping") {
      connection.send("pong");
    } else if (connection.acknowledges) {
      await this.#handleAction(connection, message);
    }
  }

  override async webSocketClose(socket: WebSocket, code: number): Promise<void> {
    this.#onDisconnect(socket);
    try {
      socket.close(code === 1005 || code === 1006 ? 1000 : code);
    } catch {
      // it is already closed
    }
  }

  override async webSocketError(socket: WebSocket): Promise<void> {
    this.#onDisconnect(socket);
  }

  // --- alarms

  override async alarm(): Promise<void> {
    const now = Date.now();
    this.#alarmAt = undefined;
    for (const connection of [...this.#connections.values()]) {
      const code = this.#expiredCode(connection, now);
      if (code !== undefined) this.#close(connection, code);
    }
    this.#sweepPresence();
    const sweepAt = this.#log.sweep();
    const next = Math.min(
      sweepAt ?? Infinity,
      ...[...this.#connections.values()].map((connection) => this.#nextDeadline(connection)),
    );
    if (next < Infinity) this.#scheduleAlarm(next);
    this.#scheduleLeave();
    if (this.#alarmAt === undefined && this.#connections.size === 0 && this.#opening.size === 0) {
      // No data and no connection: delete the storage, because an object without storage costs nothing.
      await this.ctx.blockConcurrencyWhile(async () => {
        await this.ctx.storage.deleteAll();
        this.#log.reset();
      });
    }
  }

  // --- connections

  async #subscribe(request: SubscribeRequest): Promise<Response> {
    const { claims, transport } = request;
    const limit = this.#settings.maxConnectionsPerRoom;
    if (limit > 0 && this.#connections.size + this.#opening.size >= limit) {
      throw rateLimited(`connection limit reached: ${limit} connections in a room`, 10);
    }
    const id = crypto.randomUUID();
    await this.#acquire(id, claims);
    const pair = new WebSocketPair();
    this.ctx.acceptWebSocket(pair[1]);
    const device = claims.device ?? request.device;
    const attachment: Attachment = {
      id,
      transport,
      controlFrames: request.controlFrames,
      wantsPresence: request.wantsPresence,
      isWarned: false,
      lastReceivedAt: Date.now(),
      replaying: { position: this.#startCursor(request, device), replayed: 0, isLost: request.isLost },
      ...(device === undefined ? {} : { device }),
      ...(request.presentAs === undefined ? {} : { presentAs: request.presentAs }),
      ...tokenFields(claims),
    };
    this.#attach(new Connection(pair[1], attachment));
    count(this.env, "opened", transport);
    const { subprotocol } = request;
    return new Response(null, {
      status: 101,
      webSocket: pair[0],
      ...(subprotocol === undefined ? {} : { headers: { "Sec-WebSocket-Protocol": subprotocol } }),
    });
  }

  /**
   * Register a connection with its user and its token.
   *
   * @throws RequestError 401 if the token was revoked; 429 at the connection limit.
   */
  async #acquire(id: string, claims: Claims): Promise<void> {
    const limit = this.#settings.maxConnectionsPerUser;
    this.#opening.add(id);
    try {
      const verdict = await registerConnection(this.env, claims, id, this.#room, limit);
      if (verdict === "ok" && !this.#isRevoked(claims)) return;
      if (verdict !== "rate_limited") throw revoked(claims);
      const error = rateLimited(`connection limit reached: ${limit} connections for a user`, 10);
      error.headers[CLOSE_CODE] = String(CloseCode.CONNECTION_LIMIT);
      throw error;
    } catch (error) {
      this.#release(id, claims); // one of the two registries may have registered it
      throw error;
    } finally {
      this.#opening.delete(id);
    }
  }

  /** Whether the token was revoked after the registry was called. */
  #isRevoked(claims: Claims): boolean {
    const now = Date.now();
    return this.#revocations.some(
      ({ revocation, until }) => until > now && matches(revocation, claims),
    );
  }

  #release(id: string, held: { user?: string; tokenId?: string }): void {
    const calls = registriesOf(this.env, held).map((registry) => registry.unregister([id]));
    this.ctx.waitUntil(Promise.allSettled(calls)); // a registry that misses this removes it in its next check
  }

  /** Return the position to start from, and register the device. */
  #startCursor({ after, isLost }: SubscribeRequest, device: string | undefined): Cursor {
    const log = this.#log;
    let position: Cursor;
    if (after === "latest") position = log.head();
    else if (after === "earliest" || isLost) position = log.earliest();
    else if (after !== undefined) position = parseCursor(after) ?? log.earliest();
    else if (isRequestRoom(this.#room)) position = log.earliest();
    else position = log.getAck(device) ?? log.earliest();
    const ackDevice = this.#ackOf(device);
    if (ackDevice !== undefined) {
      log.registerDevice(ackDevice, position);
      this.#scheduleSweep();
    }
    return position;
  }

  /** Return the device whose acknowledgements are stored: none in a request's room, whose replays are complete. */
  #ackOf(device: string | undefined): string | undefined {
    return isRequestRoom(this.#room) ? undefined : device;
  }

  #attach(connection: Connection): void {
    const { attachment } = connection;
    if (attachment.presentAs !== undefined) {
      this.#presence.join(attachment.presentAs, attachment.device);
      this.#savePresence();
      this.#broadcastPresence();
    }
    this.#connections.set(connection.socket, connection);
    if (attachment.wantsPresence) {
      this.#sweepPresence();
      this.#scheduleLeave();
      const state = { event: "state", users: this.#presence.state() };
      connection.send(controlFrame(PRESENCE, state));
    }
    this.#replay(connection);
    this.#checkExpiry(connection);
    this.#scheduleAlarm(this.#nextDeadline(connection));
  }

  /** Return the connection of a socket. A socket whose close wakes the object is not in getWebSockets() any more. */
  #connectionOf(socket: WebSocket): Connection | undefined {
    return this.#connections.get(socket) ?? this.#restore(socket);
  }

  /** Restore the connection of a socket after hibernation. */
  #restore(socket: WebSocket): Connection | undefined {
    const attachment = socket.deserializeAttachment() as Attachment | null;
    // A socket without an attachment was opened by another Worker class, before this one was deployed.
    if (attachment === null || attachment.isEnded) return undefined;
    const connection = new Connection(socket, attachment);
    this.#connections.set(socket, connection);
    if (attachment.presentAs !== undefined) this.#presence.rejoin(attachment.presentAs, attachment.device);
    if (attachment.replaying !== undefined && attachment.transport === "websocket") this.#scheduleReplay(connection);
    return connection;
  }

  /**
   * Close the connections whose secret or JWK set was removed by a deployment during hibernation, so that a leaked
   * key cannot keep connections open.
   */
  async #closeUnvouched(): Promise<void> {
    if (this.#connections.size === 0 || !hasKeys(this.#settings)) return;
    const { vouchers } = await keyRingOf(this.#settings);
    for (const connection of [...this.#connections.values()]) {
      const { voucher } = connection.attachment;
      if (vouchers.has(voucher ?? "")) continue;
      const reason = voucher === undefined ? "a token is now required" : "the token's key was removed";
      this.#close(connection, CloseCode.TOKEN_EXPIRED, reason);
    }
  }

  /** Close a connection. The client receives all earlier messages before the close frame. */
  #close(connection: Connection, code: CloseCode, reason = CLOSE_REASONS[code]): void {
    connection.attachment.isEnded = true;
    connection.save();
    this.#remove(connection);
    connection.socket.close(code, cutReason(reason));
    count(this.env, "disconnect", String(code));
  }

  /** Handle a connection that was closed by the client or lost. */
  #onDisconnect(socket: WebSocket): void {
    const connection = this.#connectionOf(socket);
    if (connection === undefined) return;
    connection.attachment.isEnded = true;
    connection.save();
    this.#remove(connection);
  }

  #remove({ socket, attachment }: Connection): void {
    this.#connections.delete(socket);
    this.#release(attachment.id, attachment);
    this.#sweepPresence();
    if (attachment.presentAs !== undefined) {
      if (this.#presence.leave(attachment.presentAs, attachment.device, Date.now())) {
        this.#savePresence();
        this.#scheduleLeave();
      }
      this.#broadcastPresence();
    }
    // Expired data is kept while there are connections. Sweep it after the last one.
    if (this.#connections.size === 0 && this.#log.exists) this.#scheduleSweep(Date.now());
  }

  // --- delivery: replay, then live

  #liveConnections(): Connection[] {
    return [...this.#connections.values()].filter(({ attachment }) => attachment.replaying === undefined);
  }

  /**
   * Send the next pages of the log, as long as the client reads them; then switch to live delivery.
   *
   * Notifications published meanwhile need no queue, because they are in the log. Reading the last page and
   * switching to live delivery happen without an await, so nothing can be published in between.
   */
  #replay(connection: Connection): void {
    const { attachment } = connection;
    const at = attachment.replaying;
    if (at === undefined) return;
    for (;;) {
      const page = this.#log.read(at.position, PAGE_SIZE);
      if (!page.recovered) {
        at.isLost = true;
        at.position = this.#log.earliest();
      }
      for (const entry of page.entries) connection.send(entry.text);
      const last = page.entries.at(-1);
      if (last !== undefined) {
        at.position = last.cursor;
        at.replayed += page.entries.length;
        count(this.env, "delivery", "replay", page.entries.length);
        if (!connection.acknowledges) this.#log.ack(last.cursor, this.#ackOf(attachment.device));
      }
      if (!page.more) break;
      if (attachment.transport === "sse") {
        connection.save();
        connection.send(MORE);
        return;
      }
      if (connection.backlogBytes > MAX_REPLAY_BACKLOG_BYTES) {
        connection.save();
        this.#scheduleReplay(connection);
        return;
      }
    }
    // Everything up to the head was read. An empty room has a position, too.
    const cursor = cursorText(furthest(at.position, this.#log.head()));
    delete attachment.replaying;
    connection.save();
    if (attachment.controlFrames) {
      const { replayed, isLost } = at;
      const data = { room: this.#room, cursor, replayed, recovered: !isLost };
      connection.send(controlFrame(SUBSCRIBED, data));
    }
  }

  #scheduleReplay(connection: Connection): void {
    setTimeout(() => {
      if (!this.#connections.has(connection.socket)) return;
      if (connection.backlogBytes <= MAX_REPLAY_BACKLOG_BYTES) this.#replay(connection);
      else if (connection.isStalled(Date.now())) this.#close(connection, CloseCode.SLOW_CONSUMER);
      else this.#scheduleReplay(connection);
    }, REPLAY_PAUSE_MS);
  }

  // --- actions of clients

  async #handleAction(connection: Connection, text: string): Promise<void> {
    const action = parseAction(text);
    if (action?.action === "ack") this.#acknowledge(connection, action.cursor);
    else if (action?.action === "authenticate") await this.#renew(connection, action.token);
  }

  #acknowledge({ attachment }: Connection, text: string): void {
    const cursor = parseCursor(text);
    const delivered = attachment.replaying?.position ?? this.#log.head();
    if (cursor === undefined || cursor.epoch !== delivered.epoch || cursor.offset > delivered.offset) return;
    this.#log.ack(cursor, this.#ackOf(attachment.device));
  }

  /** Replace the token. An invalid one closes the connection. */
  async #renew(connection: Connection, token: string): Promise<void> {
    const { attachment } = connection;
    const renewal = ++connection.renewals;
    const isCurrent = () =>
      this.#connections.has(connection.socket) && renewal === connection.renewals;
    const end = (code: CloseCode, reason?: string) => {
      if (isCurrent()) this.#close(connection, code, reason);
    };
    try {
      const claims = await authenticate(this.#settings, token, undefined);
      if (claims.user !== attachment.user) return end(CloseCode.FORBIDDEN, "the new token is another user's");
      authorize(claims, "subscribe", this.#room);
      if (attachment.wantsPresence) authorize(claims, "presence", this.#room);
      // The connection already counts for the user, so there is no limit.
      const verdict = await registerConnection(this.env, claims, attachment.id, this.#room, 0);
      if (verdict !== "ok") return end(CloseCode.UNAUTHORIZED, CLOSE_REASONS[CloseCode.REVOKED]);
      if (this.#isRevoked(claims)) return end(CloseCode.REVOKED);
      if (!isCurrent()) return;
      if (attachment.tokenId !== undefined && attachment.tokenId !== claims.tokenId) {
        const unregistered = registryOf(this.env, "token", attachment.tokenId).unregister([attachment.id]);
        this.ctx.waitUntil(unregistered.catch(() => undefined));
      }
      // If the token expires no later than the old one, the client has no newer one: do not warn again.
      const isNewer = (claims.expiresAt ?? Infinity) > (attachment.expiresAt ?? Infinity);
      const { warnsAt, isWarned } = attachment;
      const none = { issuedAt: undefined, expiresAt: undefined, warnsAt: undefined };
      Object.assign(attachment, none, tokenFields(claims), isNewer ? { isWarned: false } : { warnsAt, isWarned });
      connection.save();
      this.#checkExpiry(connection);
      this.#scheduleAlarm(this.#nextDeadline(connection));
    } catch (error) {
      // If the new token cannot be verified now, the old one is valid until it expires.
      if (!(error instanceof RequestError)) return;
      const { details } = error.body;
      if (error.status === 403) end(CloseCode.FORBIDDEN, details);
      else if (error.status === 401) end(CloseCode.UNAUTHORIZED, details);
    }
  }

  // --- deadlines

  /** Warn the client if its token expires soon. */
  #checkExpiry(connection: Connection): void {
    const { attachment } = connection;
    if (attachment.expiresAt === undefined) return;
    if ((attachment.warnsAt ?? 0) * 1000 <= Date.now() && !attachment.isWarned) {
      attachment.isWarned = true;
      connection.save();
      if (attachment.controlFrames) {
        const expiresAt = new Date(attachment.expiresAt * 1000).toISOString();
        connection.send(controlFrame(TOKEN_EXPIRING, { expiresAt }));
      }
    }
  }

  /** Return the close code of a connection whose deadline has passed; undefined: none has. */
  #expiredCode(connection: Connection, now: number): CloseCode | undefined {
    if (this.#idleDeadline(connection) <= now) return CloseCode.IDLE_TIMEOUT;
    this.#checkExpiry(connection);
    const { expiresAt } = connection.attachment;
    return expiresAt !== undefined && expiresAt * 1000 <= now ? CloseCode.TOKEN_EXPIRED : undefined;
  }

  /**
   * Return the idle deadline of a connection, in ms since 1970.
   *
   * An object can neither send protocol pings nor observe those of a client. So the idle timeout applies only to
   * clients that send text pings; the runtime detects other dead connections.
   */
  #idleDeadline({ socket, attachment }: Connection): number {
    const { idleTimeoutS } = this.#settings;
    // The runtime answers text pings during hibernation.
    const pingedAt = this.ctx.getWebSocketAutoResponseTimestamp(socket)?.getTime();
    if (idleTimeoutS === 0 || attachment.transport === "sse" || pingedAt === undefined) return Infinity;
    return Math.max(attachment.lastReceivedAt, pingedAt) + idleTimeoutS * 1000;
  }

  /** Return when to check for the idle timeout. A client that has not sent a ping yet is checked once. */
  #nextIdleCheck(connection: Connection): number {
    const { lastReceivedAt, transport } = connection.attachment;
    const { idleTimeoutS } = this.#settings;
    const first = lastReceivedAt + idleTimeoutS * 1000;
    if (idleTimeoutS > 0 && transport === "websocket" && first > Date.now()) return first;
    return this.#idleDeadline(connection);
  }

  #nextDeadline(connection: Connection): number {
    const { expiresAt = Infinity, warnsAt, isWarned } = connection.attachment;
    const tokenS = isWarned ? expiresAt : Math.min(expiresAt, warnsAt ?? expiresAt);
    return Math.min(this.#nextIdleCheck(connection), tokenS * 1000);
  }

  /** @param otherwise when to sweep if the log is empty, in ms since 1970. */
  #scheduleSweep(otherwise = Infinity): void {
    // While the log has data, there is always an alarm. It schedules the sweep of later entries.
    if (this.#alarmAt === undefined) this.#scheduleAlarm(this.#log.nextSweep() ?? otherwise);
  }

  #scheduleAlarm(at: number): void {
    // Whole milliseconds: an alarm that fires early, and is set to the same fractional time again, never fires.
    const next = Math.min(Math.ceil(at), Date.now() + MAX_ALARM_MS);
    if (at === Infinity || next >= (this.#alarmAt ?? Infinity)) return;
    this.#alarmAt = next;
    void this.ctx.storage.setAlarm(next);
  }

  // --- presence

  /** Send the changes to the watchers, in batches with pauses. */
  #broadcastPresence(): void {
    if (this.#isBroadcastPaused) return;
    const watchers = [...this.#connections.values()].filter(({ attachment }) => attachment.wantsPresence);
    if (watchers.length === 0) return this.#presence.markPublished();
    let written = 0;
    while (written < PRESENCE_FRAMES) {
      const change = this.#presence.nextChange();
      if (change === undefined) break;
      const frame = controlFrame(PRESENCE, change);
      for (const watcher of watchers) watcher.send(frame);
      written += watchers.length;
    }
    if (written === 0) return;
    this.#isBroadcastPaused = true;
    setTimeout(
      () => {
        this.#isBroadcastPaused = false;
        this.#broadcastPresence();
      },
      Math.max(UPDATE_INTERVAL_MS, (written / PRESENCE_FRAMES_PER_S) * 1000),
    );
  }

  /** Remove the devices whose grace period is over, and send the changes. */
  #sweepPresence(): void {
    if (!this.#presence.sweep(Date.now())) return;
    this.#savePresence();
    this.#broadcastPresence();
  }

  /** Schedule the end of the next grace period. Without watchers it is delayed, because requests sweep, too. */
  #scheduleLeave(): void {
    const [first] = this.#presence.leaving;
    if (first === undefined) return;
    const isWatched = [...this.#connections.values()].some(({ attachment }) => attachment.wantsPresence);
    this.#scheduleAlarm(first.until + (isWatched ? 0 : UNWATCHED_LEAVE_MS));
  }

  /** Store the devices in their grace period. The others are stored with their sockets. */
  #savePresence(): void {
    const { kv } = this.ctx.storage;
    const leaving = this.#presence.leaving.slice(-MAX_LEAVING);
    if (leaving.length > 0) kv.put(LEAVING, leaving);
    else if (kv.get(LEAVING) !== undefined) kv.delete(LEAVING);
  }
}

/** Return when to warn of the expiry of a token that arrives now, in seconds since 1970. */
function expiryWarningAt(expiresAt: number): number {
  const leftS = expiresAt - Date.now() / 1000;
  return expiresAt - Math.min(EXPIRING_S, leftS * EXPIRING_SHARE);
}

function tokenFields({ user, tokenId, voucher, issuedAt, expiresAt }: Claims) {
  return {
    ...(user === undefined ? {} : { user }),
    ...(tokenId === undefined ? {} : { tokenId }),
    ...(voucher === undefined ? {} : { voucher }),
    ...(issuedAt === undefined ? {} : { issuedAt }),
    ...(expiresAt === undefined ? {} : { expiresAt, warnsAt: expiryWarningAt(expiresAt) }),
  };
}

function furthest(one: Cursor, other: Cursor): Cursor {
  return one.offset > other.offset ? one : other;
}

function isTooLong(text: string): boolean {
  return (
    text.length > MAX_CLIENT_TEXT_BYTES ||
    new TextEncoder().encode(text).length > MAX_CLIENT_TEXT_BYTES
  );
}
