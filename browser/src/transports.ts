/** What the transports share, and WebSocket. Server-Sent Events are in `stream.ts`. */
import { read, TOKEN_EXPIRED, UNAUTHORIZED, type ControlFrame, type Delivered, type Failure } from "./protocol.js";

/** Callbacks of a connection. None is called after `onEnd`, or after it was closed. */
export interface TransportCallbacks {
  /** @param speaksV1 the server sends control frames. */
  onOpen(speaksV1: boolean): void;
  onMessage(message: Delivered | ControlFrame): void;
  onPong(): void;
  onEnd(failure: Failure): void;
}

export interface Transport {
  readonly kind: "websocket" | "sse";
  send(text: string): void;
  close(): void;
}

export interface Target {
  /** The server's base URL, `http` or `https`, without a trailing slash. */
  base: string;
  /** None for a connection with many rooms. */
  room?: string | undefined;
  query?: Record<string, string | undefined>;
  token?: string | undefined;
}

/** Four times the largest notification, as in other clients: some servers escape non-ASCII characters in JSON. */
export const MAX_MESSAGE_CHARS = 1024 * 1024;
export const TOO_LARGE: Failure = { reason: "the server sent a message of more than 1 MiB" };

/** The characters of a subprotocol (RFC 9110, section 5.6.2). */
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/;

/** Build the URL without `URL` and `URLSearchParams`, which drop parameters in React Native up to 0.78. */
export function address({ base, room, query = {} }: Target, route: string): string {
  const given = Object.entries(query).filter(([, value]) => value) as [string, string][];
  const search = given.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
  return `${base}/${room ? `rooms/${encodeURIComponent(room)}/` : ""}${route}${search && `?${search}`}`;
}

/** Reasons for close codes that came without one. See PROTOCOL.md, "Close codes". */
export const REASONS: Record<number, string> = {
  1012: "the server is restarting",
  4008: "slow consumer",
  4009: "idle timeout",
  4012: "the server is restarting",
  4029: "rate limit reached",
  [TOKEN_EXPIRED]: "token expired",
  [UNAUTHORIZED]: "token missing or invalid",
  4503: "token does not grant access to this room",
  4504: "token revoked",
  4529: "connection limit reached",
};
/** Some polyfills emit `error` without a following `close`: after this time, the error ends the connection. */
const CLOSE_WITHIN_MS = 250;

/** @param protocol the subprotocol; "" for a server that supports none. */
export function webSocket(target: Target, callbacks: TransportCallbacks, protocol: string): Transport {
  const { token, query } = target;
  const protocols = protocol ? [protocol] : [];
  let inQuery: string | undefined;
  if (token && TOKEN.test(token) && protocol) protocols.push(`bearer.${token}`);
  else inQuery = token;
  const url = address({ ...target, query: { ...query, token: inQuery } }, "subscribe");
  const socket = new WebSocket(url.replace(/^http/, "ws"), protocols);
  let isOpen = false;
  let isOver = false; // events of the socket are ignored
  let retryAfterMs: number | undefined;
  const opened = (speaksV1: boolean) => {
    if (isOpen || isOver) return;
    isOpen = true;
    callbacks.onOpen(speaksV1);
  };
  const end = (failure: Failure) => {
    if (isOver) return;
    isOver = true;
    callbacks.onEnd(failure);
  };
  const closed = (code: number, reason?: string) =>
    end({
      code,
      reason: reason || REASONS[code] || (isOpen || code !== 1006 ? `connection closed (${code})` : "cannot reach the server"),
      isFinal: code >= 4500 || code === 1009, // some proxies and browsers send it instead of 4540
      retryAfterMs,
    });
  // A server with synap.v1 accepts a page's handshake even if it rejects the credential, because a page can read
  // only a close code. So the connection counts as open from the first message on. With many rooms, the first message
  // is the client's.
  socket.onopen = () => socket.protocol !== "synap.v1" && opened(protocol === "synap.v2");
  socket.onmessage = ({ data }) => {
    if (isOver) return;
    if (data === "pong") return callbacks.onPong();
    if (typeof data !== "string") return;
    if (data.length > MAX_MESSAGE_CHARS) return end(TOO_LARGE);
    const message = read(data);
    if (!message) return;
    opened(true);
    if ("control" in message && message.control === "synap.closing") {
      const asked = message.data.reconnectAfterMs;
      if (typeof asked === "number" && asked >= 0) retryAfterMs = asked;
    }
    callbacks.onMessage(message);
  };
  socket.onerror = () => void setTimeout(closed, CLOSE_WITHIN_MS, 1006);
  // React Native gives no code if the connection could not be opened.
  socket.onclose = (event) => closed(event?.code ?? 1006, event?.reason);
  return {
    kind: "websocket",
    send: (text) => {
      try {
        if (socket.readyState === 1) socket.send(text);
      } catch {
        queueMicrotask(() => closed(1006)); // not while the caller is running
      }
    },
    close: () => {
      isOver = true;
      try {
        socket.close();
      } catch {
        // Some polyfills cannot close a socket that is not open yet.
      }
    },
  };
}

/** Whether event streams can be read. React Native cannot: its fetch waits for the end of the response. */
export const canStream = () => typeof TextDecoderStream !== "undefined";
