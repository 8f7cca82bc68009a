/**
 * `NotificationRoom`: one room as a Durable Object. See PROTOCOL.md, "Subscribing".
 *
 * The object hibernates while idle. Its sockets stay open, with their state in their attachments. All deferred work
 * is done in one alarm.
 */

import { DurableObject } from "cloudflare:workers";

import { Rate } from "../auth/limits";
import type { Revocation } from "../auth/revocations";
import { RequestError } from "../messages";
import { count } from "../metrics";
import { CloseCode, MAX_CLIENT_TEXT_BYTES, parseAction } from "../protocol/control";
import type { Cursor } from "../protocol/cursor";
import { settingsOf } from "../settings";
import type { Publication, PublishResult } from "../stores/entries";
import type { JobQuery } from "../stores/jobs";
import { Log } from "../stores/log";
import { slowConsumers } from "./backlog";
import type { Connection } from "./connection";
import { Deadlines } from "./deadlines";
import { warnBeforeExpiry } from "./credential";
import { readHistory } from "./history";
import { deliver, Hub } from "./hub";
import { Pacer } from "./pacing";
import type { User } from "./presence";
import { Renewals } from "./renewal";
import { Sessions } from "./sessions";
import { HOLD, MORE, parseSubscribeRequest } from "./stub";
import { Subscriptions } from "./subscription";
import { Watchers } from "./watchers";

export class NotificationRoom extends DurableObject<Env> {
  readonly #log: Log;
  readonly #hub = new Hub();
  readonly #deadlines: Deadlines;
  readonly #watchers: Watchers;
  readonly #subscriptions: Subscriptions;
  readonly #sessions: Sessions;
  readonly #renewals: Renewals;
  readonly #messages: Rate;
  readonly #pacer: Pacer;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    const settings = settingsOf(env);
    const room = ctx.id.name ?? "";
    const { storage } = ctx;
    this.#messages = new Rate(settings.messagesPerS);
    this.#log = new Log(storage, settings, room, ctx.id.toString().slice(0, 16));
    this.#deadlines = new Deadlines(ctx, settings, this.#log);
    this.#watchers = new Watchers(storage.kv, this.#hub, this.#deadlines);
    this.#subscriptions = new Subscriptions(env, room, this.#log, (connection) =>
      this.#sessions.close(connection, CloseCode.SLOW_CONSUMER),
    );
    this.#sessions = new Sessions(
      ctx, env, settings, this.#log, this.#hub, this.#deadlines, this.#watchers, this.#subscriptions,
    );
    this.#renewals = new Renewals(ctx, env, settings, room, this.#sessions, this.#deadlines);
    this.#pacer = new Pacer((publications) => this.#publishNow(publications), settings.pieceIntervalMs);
    ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair("ping", "pong"));
    for (const socket of ctx.getWebSockets()) this.#sessions.restore(socket);
    this.#watchers.restored();
    void ctx.blockConcurrencyWhile(async () => {
      await this.#deadlines.load();
      await this.#sessions.closeUntrusted();
    });
  }

  // --- called by the Worker

  /** Store notifications, all or none, and deliver each to every subscriber. Pieces of texts may wait: see pacing.ts. */
  async publish(publications: Publication[]): Promise<PublishResult[]> {
    return this.#pacer.publish(publications);
  }

  /** Return the response of `GET …/history`, as JSON. */
  async history(after: Cursor | undefined, limit: number): Promise<string> {
    return readHistory(this.#log, after, limit);
  }

  /** Return the response of `GET /jobs/{requestId}`, as JSON; undefined if there is no record. */
  async job(id: string): Promise<string | undefined> {
    return this.#log.readJob(id);
  }

  /** Return the response of `GET /users/{id}/jobs`, as JSON. */
  async jobs(query: JobQuery): Promise<string> {
    return this.#log.listJobs(query);
  }

  async connections(): Promise<number> {
    return this.#hub.size;
  }

  async presence(): Promise<{ connections: number; users: User[] }> {
    return { connections: this.#hub.size, users: this.#watchers.users() };
  }

  /** Close the connections to which a revocation applies, and return how many. */
  async closeRevoked(revocation: Revocation): Promise<number> {
    return this.#sessions.closeRevoked(revocation);
  }

  /** Return the ids of the connections that are open or being opened, for the registries. */
  async connectionIds(): Promise<string[]> {
    return this.#sessions.ids();
  }

  /** Open a WebSocket for a subscribe request that the Worker has validated. */
  override async fetch(request: Request): Promise<Response> {
    try {
      return await this.#sessions.open(parseSubscribeRequest(request));
    } catch (error) {
      if (error instanceof RequestError) return error.response;
      throw error;
    }
  }

  #publishNow(publications: Publication[]): PublishResult[] {
    for (const connection of slowConsumers(this.#hub.live(), Date.now())) {
      this.#sessions.close(connection, CloseCode.SLOW_CONSUMER);
    }
    if (publications.some(({ fold }) => fold !== undefined)) {
      const behind = this.#hub.live().filter(({ isBehind }) => isBehind);
      for (const connection of behind) this.#subscriptions.fallBehind(connection);
    }
    const live = this.#hub.live();
    const isReceived = live.some((connection) => !connection.acknowledges);
    const { publishResults, entries } = this.#log.publish(publications, this.#hub.size, isReceived);
    // These messages leave the object after the notifications are durable: the runtime delays its output until then.
    deliver(entries, live);
    const last = entries.at(-1);
    if (last !== undefined) {
      for (const connection of live) this.#subscriptions.delivered(connection, last.cursor);
    }
    count(this.env, "delivery", "live", live.length * entries.length);
    this.#deadlines.scheduleSweep();
    return publishResults;
  }

  // --- events of sockets

  override async webSocketMessage(socket: WebSocket, message: string | ArrayBuffer): Promise<void> {
    const connection = this.#sessions.find(socket);
    if (connection === undefined) return;
    const now = Date.now();
    connection.touch(now);
    if (connection.attachment.transport === "sse") {
      connection.isHeld = message === HOLD;
      if (message === MORE) this.#subscriptions.replay(connection);
    } else if (typeof message !== "string" || isTooLong(message)) {
      this.#sessions.close(connection, CloseCode.PROTOCOL_VIOLATION);
    } else if (this.#messages.waitS(connection.attachment.id, 1, now) > 0) {
      this.#sessions.close(connection, CloseCode.RATE_LIMITED);
    } else if (message === "ping") {
      connection.send("pong");
    } else if (connection.acknowledges) {
      await this.#handleAction(connection, message);
    }
  }

  override async webSocketClose(socket: WebSocket, code: number): Promise<void> {
    this.#sessions.disconnected(socket);
    try {
      socket.close(code === 1005 || code === 1006 ? 1000 : code);
    } catch {
      // it is already closed
    }
  }

  override async webSocketError(socket: WebSocket): Promise<void> {
    this.#sessions.disconnected(socket);
  }

  async #handleAction(connection: Connection, text: string): Promise<void> {
    const action = parseAction(text);
    if (action?.action === "ack") this.#subscriptions.acknowledge(connection, action.cursor);
    else if (action?.action === "authenticate") await this.#renewals.renew(connection, action.token);
  }

  // --- alarms

  override async alarm(): Promise<void> {
    const now = Date.now();
    this.#deadlines.fired();
    for (const connection of this.#hub.all()) {
      const code = this.#deadlines.passed(connection, now);
      if (code !== undefined) this.#sessions.close(connection, code);
      else warnBeforeExpiry(connection);
    }
    this.#watchers.sweep();
    // One write for all: the earliest.
    const sweepAt = this.#log.sweep() ?? Infinity;
    this.#deadlines.schedule(
      Math.min(sweepAt, ...this.#hub.all().map((connection) => this.#deadlines.next(connection))),
    );
    this.#watchers.scheduleLeave();
    if (!this.#deadlines.isScheduled && this.#hub.size === 0 && !this.#sessions.isOpening) {
      // No data and no connection: delete the storage, because an object without storage costs nothing.
      await this.ctx.blockConcurrencyWhile(async () => {
        await this.ctx.storage.deleteAll();
        this.#log.reset();
      });
    }
  }
}

function isTooLong(text: string): boolean {
  return (
    text.length > MAX_CLIENT_TEXT_BYTES ||
    new TextEncoder().encode(text).length > MAX_CLIENT_TEXT_BYTES
  );
}
