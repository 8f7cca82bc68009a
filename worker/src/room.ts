/**
 * `NotificationRoom`: one room as a Durable Object. See PROTOCOL.md, "Subscribing".
 *
 * It sleeps while nothing happens; its sockets stay, with what {@link Attachment} holds. Whatever has
 * to be done later is done in one alarm.
 */

import { DurableObject } from "cloudflare:workers";

import { authenticate, authorize, revoked } from "./access";
import type { Claims } from "./auth/claims";
import { keyRingOf } from "./auth/keyring";
import { Connection, slowConsumers, type Attachment, type SubscribeRequest } from "./connection";
import { matches, registryOf, registriesOf, registerConnection, type Revocation } from "./registry";
import { RequestError, rateLimited } from "./http";
import { Rate } from "./limits";
import { Log, type Publication, type PublishResult } from "./log";
import { count } from "./metrics";
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
} from "./protocol/control";
import { cursorText, parseCursor, type Cursor } from "./protocol/cursor";
import { isRequestRoom } from "./protocol/rooms";
import { hasKeys, settingsOf, type Env, type Settings } from "./settings";

/** The header with what a subscriber asks for ({@link SubscribeRequest}), from the Worker. */
export const SUBSCRIBE_REQUEST = "X-Synap-Subscribing";
/** The header of a refusal for which a WebSocket gets a close code instead. */
export const CLOSE_CODE = "X-Synap-Close-Code";
/** After a page of the log: say it back for the next one. Only event streams hear it. */
export const MORE = "more";

/** A replay goes on when no more than this waits. */
const MAX_REPLAY_BACKLOG_BYTES = 256 * 1024;
const REPLAY_PAUSE_MS = 20;
const PAGE_SIZE = 256;
const MAX_HISTORY_BYTES = 1024 * 1024;
/**
 * A client is warned so long before its token ends, or when this share of what the token had left at its
 * arrival is left, whichever is later. Else a token that lives for 30 s, or a cached one that arrives late,
 * would be replaced as soon as it arrives, again and again.
 */
const EXPIRING_S = 30;
const EXPIRING_SHARE = 2 / 3;
/** No alarm is set further ahead: the runtime ends in 2189, and a token may not. */
const MAX_ALARM_MS = 30 * 86_400_000;
/** So long is a revocation remembered for those who were just about to come. */
const REVOCATION_MS = 60_000;
/** So much later is it forgotten who left a room that nobody watched. */
const UNWATCHED_LEAVE_MS = 3_600_000;
/** So many frames about presence are sent in a row, and in a second; in a larger room later. */
const PRESENCE_FRAMES = 500;
const PRESENCE_FRAMES_PER_S = 5000;
const LEAVING = "leaving"; // the name under which presence is kept
/** Of so many who are about to leave does it remain known if the object is let go meanwhile. */
const MAX_LEAVING = 100;

export class NotificationRoom extends DurableObject<Env> {
  readonly #settings: Settings;
  readonly #room: string;
  readonly #log: Log;
  readonly #presence: Presence;
  #isBroadcastPaused = false; // of presence: more of it waits
  readonly #connections = new Map<WebSocket, Connection>();
  readonly #opening = new Set<string>(); // ids of those that wait for who holds them
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

  // --- what the Worker asks

  /** Keep notifications, all or none, and hand each to everyone who listens. */
  async publish(publications: Publication[]): Promise<PublishResult[]> {
    for (const connection of slowConsumers(this.#liveConnections(), Date.now())) {
      this.#close(connection, CloseCode.SLOW_CONSUMER);
    }
    const live = this.#liveConnections();
    const received = live.filter((connection) => !connection.acknowledges);
    const listeners = this.#connections.size;
    const { publishResults, entries } = this.#log.publish(publications, listeners, received.length > 0);
    // What is sent now leaves when it is stored: the object's output waits for its writes.
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

  /** `GET …/history`, as JSON. */
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
    // All up to the head was read; an empty room has a position, too.
    if (!more) position = furthest(position, head);
    const around = JSON.stringify({ room: this.#room, cursor: cursorText(position), recovered, more });
    return `${around.slice(0, -1)},"notifications":[${texts.join(",")}]}`;
  }

  async connections(): Promise<number> {
    return this.#connections.size;
  }

  async presence(): Promise<{ connections: number; users: User[] }> {
    this.#sweepPresence();
    return { connections: this.#connections.size, users: this.#presence.users() };
  }

  /** Close the connections that a revocation means; returns how many. */
  async closeRevoked(revocation: Revocation): Promise<number> {
    const now = Date.now();
    this.#revocations = this.#revocations.filter((each) => each.until > now);
    this.#revocations.push({ revocation, until: now + REVOCATION_MS });
    const found = [...this.#connections.values()].filter(({ attachment }) => matches(revocation, attachment));
    for (const connection of found) this.#close(connection, CloseCode.REVOKED);
    return found.length;
  }

  /** For who counts them: those that are open, and those that are about to be. */
  async connectionIds(): Promise<string[]> {
    return [...[...this.#connections.values()].map(({ attachment }) => attachment.id), ...this.#opening];
  }

  /** A WebSocket that the Worker has let in: {@link SUBSCRIBE_REQUEST} says for whom. */
  override async fetch(request: Request): Promise<Response> {
    const header = request.headers.get(SUBSCRIBE_REQUEST) ?? "";
    const asked = JSON.parse(decodeURIComponent(header)) as SubscribeRequest;
    try {
      return await this.#subscribe(asked);
    } catch (error) {
      if (error instanceof RequestError) return error.response;
      throw error;
    }
  }

  // --- what the sockets say

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
      // it was answered already
    }
  }

  override async webSocketError(socket: WebSocket): Promise<void> {
    this.#onDisconnect(socket);
  }

  // --- what time brings

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
      // Nothing is kept, and nobody is here: an object without storage costs nothing.
      await this.ctx.blockConcurrencyWhile(async () => {
        await this.ctx.storage.deleteAll();
        this.#log.reset();
      });
    }
  }

  // --- a connection's life

  async #subscribe(request: SubscribeRequest): Promise<Response> {
    const { claims, transport } = request;
    const most = this.#settings.maxConnectionsPerRoom;
    if (most > 0 && this.#connections.size + this.#opening.size >= most) {
      throw rateLimited(`at most ${most} connections in a room`, 10);
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
   * Have a place with who holds connections.
   *
   * @throws RequestError 401: the token was revoked; 429.
   */
  async #acquire(id: string, claims: Claims): Promise<void> {
    const most = this.#settings.maxConnectionsPerUser;
    this.#opening.add(id);
    try {
      const verdict = await registerConnection(this.env, claims, id, this.#room, most);
      if (verdict === "ok" && !this.#isRevoked(claims)) return;
      if (verdict !== "rate_limited") throw revoked(claims);
      const error = rateLimited(`at most ${most} connections for a user`, 10);
      error.headers[CLOSE_CODE] = String(CloseCode.CONNECTION_LIMIT);
      throw error;
    } catch (error) {
      this.#release(id, claims); // one of two may have given it a place
      throw error;
    } finally {
      this.#opening.delete(id);
    }
  }

  /** Whether it was revoked just now, since its holder was asked. */
  #isRevoked(claims: Claims): boolean {
    const now = Date.now();
    return this.#revocations.some(
      ({ revocation, until }) => until > now && matches(revocation, claims),
    );
  }

  #release(id: string, held: { user?: string; tokenId?: string }): void {
    const gone = registriesOf(this.env, held).map((holder) => holder.unregister([id]));
    this.ctx.waitUntil(Promise.allSettled(gone)); // who is not told finds out by asking
  }

  /** The position to start from. */
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

  /** Every listener to a request's room starts at its beginning: there is nothing to remember. */
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

  /** The connection of a socket. One whose end wakes the object is no longer among its sockets. */
  #connectionOf(socket: WebSocket): Connection | undefined {
    return this.#connections.get(socket) ?? this.#restore(socket);
  }

  /** A socket from before the object slept. */
  #restore(socket: WebSocket): Connection | undefined {
    const attachment = socket.deserializeAttachment() as Attachment | null;
    // One without an attachment is of a Worker that was here before this one.
    if (attachment === null || attachment.isEnded) return undefined;
    const connection = new Connection(socket, attachment);
    this.#connections.set(socket, connection);
    if (attachment.presentAs !== undefined) this.#presence.rejoin(attachment.presentAs, attachment.device);
    if (attachment.replaying !== undefined && attachment.transport === "websocket") this.#scheduleReplay(connection);
    return connection;
  }

  /**
   * A deployment may have removed what vouched for connections, while the object slept and its sockets
   * stayed.
   */
  async #closeUnvouched(): Promise<void> {
    if (this.#connections.size === 0 || !hasKeys(this.#settings)) return;
    const { vouchers } = await keyRingOf(this.#settings);
    for (const connection of [...this.#connections.values()]) {
      const { voucher } = connection.attachment;
      if (vouchers.has(voucher ?? "")) continue;
      const reason = voucher === undefined ? "a token is needed now" : "the token's key was removed";
      this.#close(connection, CloseCode.TOKEN_EXPIRED, reason);
    }
  }

  /** End a connection from here. What was sent to it still comes, then the close. */
  #close(connection: Connection, code: CloseCode, reason = CLOSE_REASONS[code]): void {
    connection.attachment.isEnded = true;
    connection.save();
    this.#remove(connection);
    connection.socket.close(code, cutReason(reason));
    count(this.env, "disconnect", String(code));
  }

  /** The client has ended it. */
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
    // What was kept while somebody was here goes with the last one.
    if (this.#connections.size === 0 && this.#log.exists) this.#scheduleSweep(Date.now());
  }

  // --- the log, then live

  #liveConnections(): Connection[] {
    return [...this.#connections.values()].filter(({ attachment }) => attachment.replaying === undefined);
  }

  /**
   * Send the next pages of the log, as long as the client takes them; then it is live.
   *
   * What comes meanwhile needs no place to wait: it is in the log. The last page, and the turn to
   * live, are one step in which nothing can be published.
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
    // All of the room up to the head was read; an empty room has a position, too.
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

  // --- what a client asks for

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

  /** Take a new token in place of the old one; a bad one ends the connection. */
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
      // The user has a place already: it is the same one.
      const verdict = await registerConnection(this.env, claims, attachment.id, this.#room, 0);
      if (verdict !== "ok") return end(CloseCode.UNAUTHORIZED, CLOSE_REASONS[CloseCode.REVOKED]);
      if (this.#isRevoked(claims)) return end(CloseCode.REVOKED);
      if (!isCurrent()) return;
      if (attachment.tokenId !== undefined && attachment.tokenId !== claims.tokenId) {
        const left = registryOf(this.env, "token", attachment.tokenId).unregister([attachment.id]);
        this.ctx.waitUntil(left.catch(() => undefined));
      }
      // A token that ends no later is no news: its client has none that is newer.
      const isNewer = (claims.expiresAt ?? Infinity) > (attachment.expiresAt ?? Infinity);
      const { warnsAt, isWarned } = attachment;
      const none = { issuedAt: undefined, expiresAt: undefined, warnsAt: undefined };
      Object.assign(attachment, none, tokenFields(claims), isNewer ? { isWarned: false } : { warnsAt, isWarned });
      connection.save();
      this.#checkExpiry(connection);
      this.#scheduleAlarm(this.#nextDeadline(connection));
    } catch (error) {
      // When nobody knows, the old one counts to its end.
      if (!(error instanceof RequestError)) return;
      const { details } = error.body;
      if (error.status === 403) end(CloseCode.FORBIDDEN, details);
      else if (error.status === 401) end(CloseCode.UNAUTHORIZED, details);
    }
  }

  // --- what comes later

  /** Say that the token ends soon, if it does. */
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

  /** Why a connection has to end now; undefined: it has not. */
  #expiredCode(connection: Connection, now: number): CloseCode | undefined {
    if (this.#idleDeadline(connection) <= now) return CloseCode.IDLE_TIMEOUT;
    this.#checkExpiry(connection);
    const { expiresAt } = connection.attachment;
    return expiresAt !== undefined && expiresAt * 1000 <= now ? CloseCode.TOKEN_EXPIRED : undefined;
  }

  /**
   * When a connection is silent for too long, in ms since 1970.
   *
   * An object cannot send a protocol ping, and the runtime answers those of a client without telling
   * it. So only a client that sends text pings is expected to go on; whether another one lives, the
   * runtime finds out by its own.
   */
  #idleDeadline({ socket, attachment }: Connection): number {
    const { idleTimeoutS } = this.#settings;
    // A ping is answered while the object sleeps.
    const pingedAt = this.ctx.getWebSocketAutoResponseTimestamp(socket)?.getTime();
    if (idleTimeoutS === 0 || attachment.transport === "sse" || pingedAt === undefined) return Infinity;
    return Math.max(attachment.lastReceivedAt, pingedAt) + idleTimeoutS * 1000;
  }

  /** When to look whether it is silent: also at one that has not pinged yet, once. */
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

  /** @param otherwise when, if the log is empty. */
  #scheduleSweep(otherwise = Infinity): void {
    // There is always an alarm while something is kept: the first one sees what came later.
    if (this.#alarmAt === undefined) this.#scheduleAlarm(this.#log.nextSweep() ?? otherwise);
  }

  #scheduleAlarm(at: number): void {
    // In whole milliseconds: an alarm that came before its time, and is set to the same one again, never comes.
    const next = Math.min(Math.ceil(at), Date.now() + MAX_ALARM_MS);
    if (at === Infinity || next >= (this.#alarmAt ?? Infinity)) return;
    this.#alarmAt = next;
    void this.ctx.storage.setAlarm(next);
  }

  // --- who is here

  /** Tell watchers of what has changed: some of it, and the rest after a pause. */
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

  /** Those whose grace is over have left; who watches is told. */
  #sweepPresence(): void {
    if (!this.#presence.sweep(Date.now())) return;
    this.#savePresence();
    this.#broadcastPresence();
  }

  /** Where nobody watches, it is soon enough when somebody asks. */
  #scheduleLeave(): void {
    const [first] = this.#presence.leaving;
    if (first === undefined) return;
    const isWatched = [...this.#connections.values()].some(({ attachment }) => attachment.wantsPresence);
    this.#scheduleAlarm(first.until + (isWatched ? 0 : UNWATCHED_LEAVE_MS));
  }

  /** Only who is about to leave: the others are with their sockets. */
  #savePresence(): void {
    const { kv } = this.ctx.storage;
    const leaving = this.#presence.leaving.slice(-MAX_LEAVING);
    if (leaving.length > 0) kv.put(LEAVING, leaving);
    else if (kv.get(LEAVING) !== undefined) kv.delete(LEAVING);
  }
}

/** When to warn of a token that arrives now, in seconds since 1970. */
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
