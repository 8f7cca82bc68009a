/**
 * The connections that the subscriptions of a page share. See PROTOCOL.md, "Many rooms on one connection".
 *
 * A subscription joins a room of one of them. It stays a subscription of its own, with its position, its token and its
 * reconnects; when a connection is lost, all of its rooms are.
 */
import { openConnection, type Connection, type ConnectionCallbacks } from "./connection.js";
import type { SubscribeOptions } from "./options.js";
import { order } from "./position.js";
import { isFinalStatus, type ControlFrame, type Delivered, type Failure } from "./protocol.js";
import { createTimer } from "./timer.js";
import { bounded, findToken } from "./token.js";

const MAX_ROOMS = 128;
/** A room without subscriptions is kept for this long: a component may be mounted again, or another one. */
const LINGER_MS = 1_000;

/** Whether a server has connections with many rooms; absent while it is not known. */
export const hasRooms = new Map<string, boolean>();

/** The HTTP statuses of the errors of an action; of all others: 400. */
const STATUSES: Record<string, number> = { unauthorized: 401, forbidden: 403, rate_limited: 429, unavailable: 503 };

/** A room that a subscription wants. */
export interface Wanted {
  readonly base: string;
  readonly room: string;
  readonly options: SubscribeOptions;
  query(): { after?: string | undefined; device?: string | undefined; presence?: string | undefined };
}

/** A subscription in a room. */
interface Member extends ConnectionCallbacks {
  wanted: Wanted;
  /** Its own token; undefined if it uses that of the connection. */
  token?: string | undefined;
  /** Whether the room is open for it; undefined: it receives nothing yet. */
  isOpen?: boolean;
  /** It has a cursor, and waits for those that begin at the acknowledged one, which only the server knows. */
  isHeld?: boolean;
}

interface Room {
  name: string;
  /** Subscriptions share the room if these parameters of it are the same. */
  key: string;
  members: Set<Member>;
  /**
   * `new`: to be subscribed; `replaying`: a subscription that joins would miss something; `live`: it would not; `ending`:
   * unsubscribed, to be subscribed again if it has members then.
   */
  state: "new" | "replaying" | "live" | "ending";
  /** The position of the subscriptions in it. */
  cursor?: unknown;
}

/** A connection with many rooms. */
interface Link {
  readonly source: SubscribeOptions["token"];
  connection?: ReturnType<typeof openConnection>;
  /** Whether a subscription can join. */
  fits(wanted: Wanted): boolean;
  join(member: Member): unknown;
  leave(member: Member, isDead?: boolean): void;
}

const links: Link[] = [];

const startOf = ({ wanted: { query, room } }: Member) => query().after || (room.startsWith("request_") ? "earliest" : undefined);
const keyOf = ({ query }: Wanted) => [query().device, query().presence].join();
/** The start from which both miss nothing. Each subscription drops what it has received. */
const earlier = (one: string | undefined, other: string | undefined) => {
  if (one === "latest") return other;
  if (other === "latest") return one;
  const lead = order(one, other);
  return lead > 0 ? other : lead <= 0 ? one : "earliest";
};

/** @param token of the connection; undefined: it is fetched. */
function createLink(base: string, options: SubscribeOptions, token?: string): Link {
  const rooms = new Map<string, Room>();
  /** The sources of tokens whose rooms this connection does not have: they are another user's, or it is full. */
  const refused = new Set<unknown>();
  const timer = createTimer();
  let isOpen = false;
  let isOver = false;

  const send = (message: object) => link.connection?.send(JSON.stringify(message));
  const close = () => {
    isOver = true;
    timer.stop();
    link.connection?.close();
    links.splice(links.indexOf(link), 1);
  };
  const endRoom = ({ name, members }: Room, failure: Failure) => {
    rooms.delete(name);
    for (const member of members) {
      // Where the token of the connection is refused, a room's own may be accepted, on another connection.
      const isFinal = failure.isFinal && !(isOver && member.token);
      member.onEnd({ ...failure, isFinal, wasOpen: isOpen, token: member.token ?? token });
    }
  };
  const end = (failure: Failure) => {
    if (isOver) return;
    close();
    failure.jitter = Math.random(); // the same for all, so that they come back together
    for (const room of [...rooms.values()]) endRoom(room, failure);
  };

  const subscribe = (room: Room) => {
    const all = [...room.members];
    if (!all[0]) return;
    const starts = all.map(startOf);
    const after = starts.every(Boolean) ? starts.reduce(earlier) : undefined;
    for (const member of all) {
      const isNew = startOf(member) === "latest"; // the replay is not for it
      member.isHeld = !after && !isNew && !!startOf(member);
      if (!member.isHeld && (after === "latest" || !isNew)) member.isOpen ??= false;
    }
    const { wanted, token: own } = all[0];
    const { tokens } = link.connection!;
    const roomToken = all.every(({ token }) => token && token !== tokens.get(undefined)) ? own : undefined;
    tokens.set(room.name, roomToken);
    room.state = "replaying";
    send({ action: "subscribe", room: room.name, ...wanted.query(), after, presence: wanted.options.presence, token: roomToken });
  };
  const unsubscribe = (room: Room) => {
    room.state = "ending";
    link.connection!.flush();
    send({ action: "unsubscribe", room: room.name });
  };
  /** Drop the rooms without subscriptions. */
  const sweep = () => {
    const all = [...rooms.values()];
    if (!all.some(({ members }) => members.size)) return close();
    for (const room of all) if (!room.members.size && room.state !== "ending") unsubscribe(room);
  };

  const deliver = (member: Member, message: Delivered | ControlFrame) => {
    const isHere = () => rooms.get(member.wanted.room)?.members.has(member);
    if (member.isHeld || member.isOpen === undefined || !isHere()) return;
    if (!member.isOpen) {
      member.isOpen = true;
      member.onOpen(true);
    }
    if (isHere()) member.onMessage(message); // the callback may have closed it
  };
  const onMessage = (message: Delivered | ControlFrame) => {
    const { control, data } = message as ControlFrame;
    const { room: name, cursor } = (control ? data : message) as Delivered;
    const room = rooms.get(name!);
    if (!room) {
      if (control !== "synap.token_expiring") return;
      const members = [...rooms.values()].flatMap(({ members }) => [...members]);
      const member = members.find(({ token }) => !token) ?? members[0];
      return member && deliver(member, message);
    }
    const isError = control === "synap.error";
    if (isError || control === "synap.unsubscribed") {
      const { code, details, reason = details, retryAfterMs, reconnectAfterMs = retryAfterMs } = data;
      if (isError && data.action !== "subscribe") return;
      if (code === undefined) return room.members.size ? subscribe(room) : void rooms.delete(room.name);
      const status = isError ? (STATUSES[code as string] ?? 400) : (code as number);
      const failure: Failure = {
        reason: `${reason as string}`, code: status, isFinal: isError ? isFinalStatus(status) : status >= 4500,
        retryAfterMs: reconnectAfterMs as number | undefined,
      };
      if (code === "too_many_rooms" || (code === "forbidden" && link.connection!.tokens.get(room.name))) {
        // Use another connection.
        for (const { wanted } of room.members) refused.add(wanted.options.token);
        Object.assign(failure, { isFinal: false, retryAfterMs: 0 });
      }
      return endRoom(room, failure);
    }
    const isLive = control === "synap.subscribed" && room.state !== "ending";
    if (isLive || !control) {
      room.cursor = isLive ? data.cursor : cursor;
      if (!room.members.size) room.state = "replaying";
      else if (isLive) room.state = "live";
    }
    let isHeld;
    for (const member of [...room.members]) {
      if (isLive) member.isHeld ? (isHeld = true) : (member.isOpen ??= false);
      deliver(member, message);
    }
    if (isHeld) unsubscribe(room); // all of them have cursors now
  };

  const link: Link = {
    source: options.token,
    fits: (wanted) => {
      const room = rooms.get(wanted.room);
      const isFree = room ? room.key === keyOf(wanted) : rooms.size < MAX_ROOMS;
      return base === wanted.base && isFree && !refused.has(wanted.options.token);
    },
    join: (member) => {
      const { wanted } = member;
      const name = wanted.room;
      const room: Room = rooms.get(name) ?? { name, key: keyOf(wanted), members: new Set(), state: "new" };
      const start = startOf(member);
      rooms.set(name, room);
      room.members.add(member);
      if (room.state === "new") return isOpen && subscribe(room);
      if (room.state === "ending") return;
      // Receive from now on, if that misses nothing.
      const isNew = start === "latest";
      if (room.state !== "live" || wanted.options.presence || !(isNew || order(start, room.cursor) >= 0)) return unsubscribe(room);
      queueMicrotask(() => {
        member.isOpen ??= false;
        deliver(member, { control: "synap.subscribed", data: { cursor: isNew ? room.cursor : start } });
      });
    },
    leave: (member, isDead) => {
      const { room: name } = member.wanted;
      const room = rooms.get(name);
      if (!room?.members.delete(member) && !isOpen) return;
      if (isOver) return;
      if (isDead) return end({ reason: "reconnecting", retryAfterMs: 0 });
      if (isOpen) {
        link.connection?.flush();
        timer.ensure(LINGER_MS, sweep);
      } else if (!room!.members.size) {
        rooms.delete(name);
        if (!rooms.size) close();
      }
    },
  };
  links.push(link);
  void (async () => {
    const found: Partial<Failure> = token === undefined ? await findToken(options) : { token };
    if (isOver) return;
    if (found.reason) return end(found as Failure);
    ({ token } = found);
    link.connection = openConnection({ base, token }, "v2", {
      onOpen: () => {
        isOpen = true;
        hasRooms.set(base, true);
        for (const room of rooms.values()) subscribe(room);
      },
      onMessage,
      onEnd: async (failure) => {
        if (!isOpen && !failure.isFinal && (failure.code ?? 1006) === 1006) {
          // A page cannot see why a handshake failed. 426: the route exists.
          const probe = async () => (await fetch(`${base}/subscribe`, { cache: "no-store", redirect: "error" })).status;
          const status = (await bounded(probe().catch(() => 500))) as number; // no number if it takes too long
          if (status < 400 || isFinalStatus(status)) hasRooms.set(base, status === 426);
        }
        end(failure);
      },
    });
  })();
  return link;
}

/** Join a room of a connection with many rooms; open one if there is none. */
export function joinRoom(wanted: Wanted, callbacks: ConnectionCallbacks): Connection {
  const { base, options, room } = wanted;
  const member: Member = { ...callbacks, wanted };
  const source = options.token;
  const fitting = () => links.filter(({ fits }) => fits(wanted));
  let link: Link | undefined;
  let isOver = false;
  const join = (found?: Link, token?: string) => {
    link = found ?? createLink(base, options, token);
    link.join(member);
  };
  const shared = fitting().find((each) => each.source === source);
  if (shared || !fitting().length) join(shared);
  else
    void findToken(options).then((found) => {
      if (isOver) return;
      if (found.reason) return callbacks.onEnd(found as Failure);
      const [other] = fitting();
      if (other) member.token = found.token;
      join(other, found.token);
    });
  return {
    kind: "websocket",
    send: (text) => link?.connection?.send(text),
    acknowledge: (cursor) => link?.connection?.acknowledge(cursor, room),
    authenticate: (token, name) => link?.connection?.authenticate(token, name),
    wake: () => link?.connection?.wake(),
    close: (isDead) => {
      isOver = true;
      link?.leave(member, isDead);
    },
  };
}
