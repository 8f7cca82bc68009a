/** One connection to the server: it has to open in time, and is kept alive. */
import { createKeepalive, type Keepalive } from "./keepalive.js";
import type { ControlFrame, Delivered, Failure } from "./protocol.js";
import { createTimer } from "./timer.js";
import { webSocket, type Target, type Transport } from "./transports.js";

/** A proxy that blocks WebSockets may drop the handshake without a response. */
const OPEN_WITHIN_MS = 10_000;

/** A WebSocket with many rooms, one with synap.v1, one without a subprotocol, an event stream. */
export type Way = "v2" | "v1" | "plain" | "sse";

/** A connection, or a room's part of one. */
export interface Connection {
  readonly kind: Transport["kind"];
  send(text: string): void;
  acknowledge(cursor: string | undefined): void;
  /** Send a token, if it is a new one. @param room whose own it is. */
  authenticate(token: string | undefined, room?: string): void;
  /** Check whether the server still answers. */
  wake(): void;
  /** @param isDead the connection is not to be used again, by any room. */
  close(isDead?: boolean): void;
}

/** Callbacks of a connection. None is called after `onEnd`, or after it was closed. */
export interface ConnectionCallbacks {
  /** @param hasControl the server sends control frames. */
  onOpen(hasControl: boolean): void;
  onMessage(message: Delivered | ControlFrame): void;
  onEnd(failure: Failure): void;
}

/** Open a connection. The callbacks are called later. */
export function openConnection(target: Target, way: Way, callbacks: ConnectionCallbacks) {
  const timer = createTimer();
  let transport: Transport | undefined;
  let keepalive: Keepalive | undefined; // while it is open
  let isOver = false;
  const close = () => {
    isOver = true;
    timer.stop();
    keepalive?.stop();
    keepalive = undefined;
    transport?.close();
  };
  const onEnd = (failure: Failure) => {
    if (isOver) return;
    close();
    callbacks.onEnd(failure);
  };
  timer.start(OPEN_WITHIN_MS, () => onEnd({ reason: "connection timeout", isTimeout: true }));
  const events = {
    onOpen: (hasControl: boolean) => {
      timer.stop();
      keepalive = createKeepalive(transport!, hasControl && way !== "sse", () => onEnd({ reason: "pong timeout" }));
      callbacks.onOpen(hasControl);
    },
    onMessage: callbacks.onMessage,
    onPong: () => keepalive?.pong(),
    onEnd,
  };
  try {
    if (way !== "sse") transport = webSocket(target, events, way === "plain" ? "" : `synap.${way}`);
    else
      void import("./stream.js").then(
        ({ eventStream }) => isOver || (transport = eventStream(target, events)),
        () => onEnd({ reason: "cannot load stream.js" }),
      );
  } catch (error) {
    // The error message may contain the URL with its token. SyntaxError: the URL is invalid.
    const name = (error as Error | undefined)?.name;
    queueMicrotask(() => onEnd({ reason: `cannot connect (${name})`, isFinal: name === "SyntaxError" }));
  }
  const send = (text: string) => transport?.send(text);
  /** The token of the connection, and the own ones of its rooms. */
  const tokens = new Map<string | undefined, string | undefined>([[undefined, target.token]]);
  return {
    kind: way === "sse" ? "sse" : "websocket",
    send,
    acknowledge: (cursor: string | undefined, room?: string) => keepalive?.acknowledge(cursor, room),
    flush: () => keepalive?.flush(),
    authenticate: (token: string | undefined, room?: string) => {
      if (!token || token === tokens.get(room)) return;
      tokens.set(room, token);
      send(JSON.stringify({ action: "authenticate", room, token }));
    },
    tokens,
    wake: () => keepalive?.wake(),
    close,
  } satisfies Connection & Record<string, unknown>;
}
