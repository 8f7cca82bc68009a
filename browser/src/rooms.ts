/**
 * The connections that the subscriptions of a page share. See PROTOCOL.md, "Many rooms on one connection".
 *
 * A subscription joins a room of one of them. It stays a subscription of its own, with its position, its token and its
 * reconnects; when a connection is lost, all of its rooms are.
 */
import { openConnection, type Connection, type ConnectionCallbacks } from "./connection.js";
import type { SubscribeOptions } from "./options.js";
import { isLater } from "./position.js";
import type { ControlFrame, Delivered, Failure } from "./protocol.js";
import { createTimer } from "./timer.js";
import { bounded, findToken } from "./token.js";
import { address } from "./transports.js";

const MAX_ROOMS = 128;
/** A room without subscriptions is kept for this long: a component may be mounted again, or another one. */
const LINGER_MS = 1_000;

/** Whether a server has connections with many rooms; absent while it is not known. */
export const hasRooms = new Map<string, boolean>();

const PROBE: RequestInit = { cache: "no-store", credentials: "omit", redirect: "error" };

/** The HTTP statuses of the errors of an action. */
const STATUSES: Record<string, number> = { unauthorized: 401, forbidden: 403, rate_limited: 429, unavailable: 503 };

/** A room that a subscription wants. */
export interface Wanted {
  readonly base: string;
  readonly room: string;
  readonly options: SubscribeOptions;
  /** The parameters of the subscription: `after`, `device`, `presence`. */
  query(): { after?: string | undefined; device?: string | undefined; presence?: string | undefined };
}

/** A subscription in a room. */
interface Member extends ConnectionCallbacks {
  wanted: Wanted;
  /** Its own token; undefined if it uses that of the connection. */
  token?: string | undefined;
  isOpen?: boolean;
}

interface Room {
  name: string;
  /** Subscriptions share the room if these parameters of it are the same. */
  key: string;
  members: Set<Member>;
  /**
   * `new`: to be subscribed; `replaying` and `live`: before and after the end of the replay; `ending`: unsubscribed, to
   * be subscribed again if it has members then.
   */
  state: "new" | "replaying" | "live" | "ending";
  /** The position of the subscriptions in it. */
  cursor?: unknown;
  /** It has received something while it had no subscription. */
  isStale?: boolean;
}

/** A connection with many rooms. */
interface Link {
  readonly source: SubscribeOptions["token"];
  /** Whether a subscription can join. */
  fits(wanted: Wanted): boolean;
  join(member: Member): Connection;
}

const links: Link[] = [];

const startOf = ({ wanted }: Member) => wanted.query().after || (wanted.room.startsWith("request_") ? "earliest" : undefined);
const keyOf = ({ query, options }: Wanted) => `${query().device} ${query().presence} ${options.acknowledge !== false}`;

function createLink(base: string, options: SubscribeOptions, ownToken?: string): Link {
  const rooms = new Map<string, Room>();
  const refused = new Set<unknown>();
  const sweepTimer = createTimer();
  let connection: ReturnType<typeof openConnection> | undefined;
  let isOpen = false;
  let isOver = false;
  let token = ownToken;
  let renewing: Member | undefined; // the member that was asked for the connection's next token

  const send = (message: object) => connection?.send(JSON.stringify(message));
  const close = () => {
    isOver = true;
    sweepTimer.stop();
    connection?.close();
    const place = links.indexOf(link);
    if (place >= 0) links.splice(place, 1);
  };
  /** End the connection, or a room: all of its subscriptions. */
  const endRoom = ({ name, members }: Room, failure: Failure) => {
    rooms.delete(name);
    for (const member of members) {
      // Another token may be accepted, on a connection of its own.
      const mayRetry = failure.isFinal && isOver && member.token;
      member.onEnd({ ...failure, token: member.token ?? token, ...(mayRetry && { isFinal: false, retryAfterMs: 0 }) });
    }
  };
  const end = (failure: Failure) => {
    if (isOver) return;
    close();
    const jitter = Math.random(); // the same for all, so that they come back together
    for (const room of [...rooms.values()]) endRoom(room, { jitter, ...failure });
  };
  const lost = async (failure: Failure) => {
    if (!isOpen && !failure.isFinal && (failure.code ?? 1006) === 1006) {
      // A page cannot see why a handshake failed. 426: the route exists.
      const probe = async () => (await fetch(address({ base }, "subscribe"), PROBE)).status;
      const status = await bounded(probe().catch(() => 500));
      if (typeof status === "number" && status < 500 && status !== 429) hasRooms.set(base, status === 426);
    }
    end(failure);
  };

  // ---- rooms ----

  const subscribe = (room: Room) => {
    const all = [...room.members];
    const [first] = all;
    if (!first) return;
    let after: string | undefined = startOf(first);
    for (const member of all) {
      const start = startOf(member);
      // A position that cannot be compared: each subscription drops what it has received.
      if (start && start !== "latest" && after !== "earliest")
        after = !after || after === "latest" || isLater(after, start) ? start : isLater(start, after) || start === after ? after : "earliest";
      member.isOpen ??= false; // from now on, it receives
    }
    const ownToken = all.every((member) => member.token && member.token !== token) ? first.token : undefined;
    const { device, presence } = first.wanted.query();
    room.state = "replaying";
    room.isStale = false;
    send({ action: "subscribe", room: room.name, after, device, presence: presence && true, token: ownToken });
  };
  const unsubscribe = (room: Room) => {
    room.state = "ending";
    connection?.flush();
    send({ action: "unsubscribe", room: room.name });
  };
  /** Drop the rooms without subscriptions. */
  const sweep = () => {
    let isUsed = false;
    for (const room of rooms.values()) {
      if (room.members.size) isUsed = true;
      else if (room.state !== "ending") unsubscribe(room);
    }
    if (!isUsed) close();
  };

  const deliver = (member: Member, message: Delivered | ControlFrame) => {
    const isHere = () => rooms.get(member.wanted.room)?.members.has(member);
    if (member.isOpen === undefined || !isHere()) return;
    if (!member.isOpen) {
      member.isOpen = true;
      member.onOpen(true);
    }
    if (isHere()) member.onMessage(message); // the callback may have closed it
  };
  const onMessage = (message: Delivered | ControlFrame) => {
    const data = ("control" in message ? message.data : message) as Record<string, unknown>;
    const kind = "control" in message ? message.control : "";
    const room = rooms.get(data.room as string);
    if (!room) {
      if (kind !== "synap.token_expiring") return;
      const members = [...rooms.values()].flatMap(({ members }) => [...members]);
      renewing = members.find((member) => !member.token) ?? members[0];
      return renewing && deliver(renewing, message);
    }
    const isError = kind === "synap.error";
    if (isError || kind === "synap.unsubscribed") {
      const { code } = data;
      if (isError && (data.action !== "subscribe" || code === "already_subscribed")) return;
      if (code === undefined) {
        if (room.members.size) subscribe(room);
        else rooms.delete(room.name);
        return;
      }
      const asked = isError ? data.retryAfterMs : data.reconnectAfterMs;
      const failure: Failure = { reason: String(data.details ?? (data.reason || `room closed (${code as number})`)) };
      if (asked !== undefined) failure.retryAfterMs = Number(asked) || 0;
      failure.code = isError ? (STATUSES[code as string] ?? 400) : Number(code);
      const others = code === "too_many_rooms" || (code === "forbidden" && [...room.members].every((member) => member.token));
      if (others) {
        // Try another connection: this one is full, or belongs to another user.
        for (const { wanted } of room.members) refused.add(code === "forbidden" ? wanted.options.token : "");
        failure.retryAfterMs = 0;
      }
      failure.isFinal = !others && (isError ? !/^(rate_limited|unavailable)$/.test(code as string) : failure.code >= 4500);
      return endRoom(room, failure);
    }
    if (kind === "synap.subscribed") room.state = "live";
    if (!kind || kind === "synap.subscribed") {
      room.cursor = data.cursor;
      room.isStale ||= !kind && !room.members.size;
    }
    for (const member of [...room.members]) deliver(member, message);
  };

  const link: Link = {
    source: options.token,
    fits: (wanted) => {
      const room = rooms.get(wanted.room);
      const isFree = room ? room.key === keyOf(wanted) : rooms.size < MAX_ROOMS && !refused.has("");
      return wanted.base === base && isFree && !refused.has(wanted.options.token);
    },
    join: (member) => {
      const { wanted } = member;
      const name = wanted.room;
      let room = rooms.get(name);
      if (!room) rooms.set(name, (room = { name, key: keyOf(wanted), members: new Set(), state: "new" }));
      const isEmpty = !room.members.size;
      room.members.add(member);
      const { state, cursor } = room;
      const start = startOf(member);
      if (state === "new") isOpen && subscribe(room);
      else if (state !== "ending") {
        // Another subscription has begun: from now on, if that misses nothing.
        const isHere = state === "live" && !wanted.query().presence && !(isEmpty && room.isStale);
        if (isHere && (!start || start === "latest" || start === cursor || isLater(start, cursor))) {
          queueMicrotask(() => {
            member.isOpen ??= false;
            const data = { cursor: start && start !== "latest" ? start : room.cursor };
            deliver(member, { control: "synap.subscribed", data });
          });
        } else unsubscribe(room);
      }
      return {
        kind: "websocket",
        send: (text) => isOpen && connection?.send(text),
        acknowledge: (cursor) => connection?.acknowledge(cursor, name),
        authenticate: (next) => {
          if (!member.token || renewing === member) {
            renewing = undefined;
            token = next ?? token;
            connection?.authenticate(next);
          } else if (next && next !== member.token) send({ action: "authenticate", room: name, token: (member.token = next) });
        },
        wake: () => connection?.wake(),
        close: (isDead) => {
          room.members.delete(member);
          if (isOver) return;
          if (isDead) return end({ reason: "reconnecting", retryAfterMs: 0 });
          connection?.flush();
          if (!isOpen) {
            if (!room.members.size && rooms.get(name) === room) rooms.delete(name);
            if (!rooms.size) close();
          } else sweepTimer.ensure(LINGER_MS, sweep);
        },
      };
    },
  };
  links.push(link);
  void (async () => {
    const found = ownToken === undefined ? await findToken(options) : {};
    if (isOver) return;
    if ("reason" in found && found.reason) return end(found as Failure);
    token ??= (found as { token?: string }).token;
    connection = openConnection({ base, token }, "v2", {
      onOpen: () => {
        isOpen = true;
        hasRooms.set(base, true);
        for (const room of rooms.values()) subscribe(room);
      },
      onMessage,
      onEnd: lost,
    });
  })();
  return link;
}

/** Join a room of a connection with many rooms; open one if there is none. */
export function joinRoom(wanted: Wanted, callbacks: ConnectionCallbacks): Connection {
  const { base, options } = wanted;
  const member: Member = { ...callbacks, wanted };
  let inner: Connection | undefined;
  let isOver = false;
  const fitting = () => links.filter((link) => link.fits(wanted));
  const source = options.token;
  const shared = fitting().find((link) => link.source === source);
  if (shared || !fitting().length) inner = (shared ?? createLink(base, options)).join(member);
  else
    void findToken(options).then(({ token, reason }) => {
      if (isOver) return;
      if (reason) return callbacks.onEnd({ reason });
      member.token = token;
      const [link] = fitting();
      // On a connection that it opens, its token is that of the connection.
      if (!link) member.token = undefined;
      inner = (link ?? createLink(base, options, token)).join(member);
    });
  return {
    kind: "websocket",
    send: (text) => inner?.send(text),
    acknowledge: (cursor) => inner?.acknowledge(cursor),
    authenticate: (token) => inner?.authenticate(token),
    wake: () => inner?.wake(),
    close: (isDead) => {
      isOver = true;
      inner?.close(isDead);
    },
  };
}
