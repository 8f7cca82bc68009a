/** Sessions: open, restore and close the connections of a room. See PROTOCOL.md, "Subscribing" and "Close codes". */

import { revoked } from "../auth/authorization";
import type { Claims } from "../auth/claims";
import { keyRingOf } from "../auth/keys";
import { registerConnection, registriesOf } from "../auth/registry";
import { matches, RecentRevocations, type Principal, type Revocation } from "../auth/revocations";
import { rateLimited } from "../messages";
import { count } from "../metrics";
import { CLOSE_REASONS, CloseCode, cutReason } from "../protocol/control";
import { hasKeys, type Settings } from "../settings";
import type { Log } from "../stores/log";
import { Connection, type Attachment } from "./connection";
import type { Deadlines } from "./deadlines";
import { credentialFor, warnBeforeExpiry } from "./credential";
import type { Hub } from "./hub";
import { CLOSE_CODE, type SubscribeRequest } from "./stub";
import { Subscriptions } from "./subscription";
import type { Watchers } from "./watchers";

const RETRY_AFTER_S = 10;

export class Sessions {
  readonly #revocations = new RecentRevocations();
  readonly #opening = new Set<string>(); // ids of connections that are being registered

  constructor(
    private readonly ctx: DurableObjectState,
    private readonly env: Env,
    private readonly settings: Settings,
    private readonly log: Log,
    private readonly hub: Hub,
    private readonly deadlines: Deadlines,
    private readonly watchers: Watchers,
    private readonly subscriptions: Subscriptions,
  ) {}

  get isOpening(): boolean {
    return this.#opening.size > 0;
  }

  /** Return the ids of the connections that are open or being opened, for the registries. */
  ids(): string[] {
    return [...this.hub.all().map(({ attachment }) => attachment.id), ...this.#opening];
  }

  /**
   * Open a connection, and start its replay.
   *
   * @throws RequestError 401 if the token was revoked; 429 at a connection limit.
   */
  async open(request: SubscribeRequest): Promise<Response> {
    const { claims, transport, subprotocol } = request;
    const limit = this.settings.maxConnectionsPerRoom;
    if (limit > 0 && this.hub.size + this.#opening.size >= limit) {
      throw rateLimited(`connection limit (${limit}) of the room reached`, RETRY_AFTER_S);
    }
    const id = crypto.randomUUID();
    await this.#acquire(id, claims);
    const pair = new WebSocketPair();
    this.ctx.acceptWebSocket(pair[1]);
    this.#start(new Connection(pair[1], this.#attachmentFor(id, request)));
    count(this.env, "opened", transport);
    return new Response(null, {
      status: 101,
      webSocket: pair[0],
      ...(subprotocol === undefined ? {} : { headers: { "Sec-WebSocket-Protocol": subprotocol } }),
    });
  }

  /** Return the connection of a socket. A socket whose close wakes the object is not in getWebSockets() any more. */
  find(socket: WebSocket): Connection | undefined {
    return this.hub.get(socket) ?? this.restore(socket);
  }

  /** Restore the connection of a socket after hibernation. */
  restore(socket: WebSocket): Connection | undefined {
    const attachment = socket.deserializeAttachment() as Attachment | null;
    // A socket without a state was opened by another Worker class, before this one was deployed.
    if (attachment?.state === undefined || attachment.state.name === "closed") return undefined;
    const connection = new Connection(socket, attachment);
    this.hub.add(connection);
    this.watchers.rejoin(connection);
    if (attachment.state.name === "replaying" && attachment.transport === "websocket") {
      this.subscriptions.resumeReplay(connection);
    }
    return connection;
  }

  /** Close a connection. The client receives all earlier messages before the close frame. */
  close(connection: Connection, code: CloseCode, reason = CLOSE_REASONS[code]): void {
    this.#remove(connection);
    connection.socket.close(code, cutReason(reason));
    count(this.env, "disconnect", String(code));
  }

  /** Handle a connection that was closed by the client or lost. */
  disconnected(socket: WebSocket): void {
    const connection = this.find(socket);
    if (connection !== undefined) this.#remove(connection);
  }

  /** Close the connections to which a revocation applies, and return how many. */
  closeRevoked(revocation: Revocation): number {
    this.#revocations.add(revocation);
    const found = this.hub.all().filter(({ attachment }) => matches(revocation, attachment.credential));
    for (const connection of found) this.close(connection, CloseCode.REVOKED);
    return found.length;
  }

  /** Whether a token was revoked in the last minute. */
  isRevoked(claims: Claims): boolean {
    return this.#revocations.matches(claims);
  }

  /**
   * Close the connections whose secret or JWK set was removed by a deployment during hibernation, so that a leaked
   * key cannot keep connections open.
   */
  async closeUntrusted(): Promise<void> {
    if (this.hub.size === 0 || !hasKeys(this.settings)) return;
    const { anchors } = await keyRingOf(this.settings);
    for (const connection of this.hub.all()) {
      const { anchor } = connection.attachment.credential;
      if (anchors.has(anchor ?? "")) continue;
      const reason = anchor === undefined ? "a token is now required" : "the token's key was removed";
      this.close(connection, CloseCode.TOKEN_EXPIRED, reason);
    }
  }

  /**
   * Register a connection with its user and its token.
   *
   * @throws RequestError 401 if the token was revoked; 429 at the connection limit.
   */
  async #acquire(id: string, claims: Claims): Promise<void> {
    const limit = this.settings.maxConnectionsPerUser;
    this.#opening.add(id);
    try {
      const verdict = await registerConnection(this.env, claims, id, this.log.room, limit);
      if (verdict === "ok" && !this.isRevoked(claims)) return;
      if (verdict !== "rate_limited") throw revoked(claims);
      const error = rateLimited(`connection limit (${limit}) per user reached`, RETRY_AFTER_S);
      error.headers[CLOSE_CODE] = String(CloseCode.CONNECTION_LIMIT);
      throw error;
    } catch (error) {
      this.#release(id, claims); // one of the two registries may have registered it
      throw error;
    } finally {
      this.#opening.delete(id);
    }
  }

  #release(id: string, principal: Principal): void {
    const calls = registriesOf(this.env, principal).map((registry) => registry.unregister([id]));
    this.ctx.waitUntil(Promise.allSettled(calls)); // a registry that misses this removes it in its next check
  }

  #attachmentFor(id: string, request: SubscribeRequest): Attachment {
    const { transport, controlFrames, wantsPresence, presentAs, claims, isLost } = request;
    const device = claims.device ?? request.device;
    const position = this.subscriptions.startCursor(request, device);
    if (this.subscriptions.registerDevice(device, position)) this.deadlines.scheduleSweep();
    return {
      id,
      transport,
      controlFrames,
      wantsPresence,
      lastReceivedAt: Date.now(),
      state: { name: "replaying", position, replayed: 0, isLost },
      credential: credentialFor(claims),
      ...(device === undefined ? {} : { device }),
      ...(presentAs === undefined ? {} : { presentAs }),
    };
  }

  #start(connection: Connection): void {
    this.watchers.join(connection);
    this.hub.add(connection);
    if (connection.attachment.wantsPresence) this.watchers.sendState(connection);
    this.subscriptions.replay(connection);
    warnBeforeExpiry(connection);
    this.deadlines.schedule(this.deadlines.next(connection));
  }

  #remove(connection: Connection): void {
    const { id, credential } = connection.attachment;
    connection.enter({ name: "closed" });
    this.hub.remove(connection);
    this.#release(id, credential);
    this.watchers.leave(connection);
    // Expired data is kept while there are connections. Sweep it after the last one.
    if (this.hub.size === 0 && this.log.exists) this.deadlines.scheduleSweep(Date.now());
  }
}
