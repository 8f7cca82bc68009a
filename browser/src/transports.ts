/** The two ways to listen: a WebSocket, and Server-Sent Events where WebSockets are blocked. */
import { isFinalStatus, read, type ControlFrame, type Delivered, type Failure } from "./protocol.js";

/** What a connection tells. After `onEnd` it tells nothing more. */
export interface Ear {
  /** @param speaksV1 the server sends control frames. */
  onOpen(speaksV1: boolean): void;
  onMessage(message: Delivered | ControlFrame): void;
  onPong(): void;
  onEnd(failure: Failure): void;
}

export interface Wire {
  readonly kind: "websocket" | "sse";
  send(text: string): void;
  close(): void;
}

export interface Target {
  /** The server's base, `http` or `https`, without a slash at its end. */
  base: string;
  room: string;
  query: Record<string, string | undefined>;
  token?: string;
}

/** Four times the largest notification, as other clients have it: some servers write JSON with escapes. */
const MAX_MESSAGE_CHARS = 1024 * 1024;
const TOO_LARGE: Failure = { reason: "the server sent a message of more than 1 MiB" };

/** What a subprotocol may be made of (RFC 9110, section 5.6.2). */
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/;

function address({ base, room, query }: Target, route: string): string {
  const given = Object.entries(query).filter(([, value]) => value) as [string, string][];
  const search = new URLSearchParams(given).toString();
  return `${base}/rooms/${encodeURIComponent(room)}/${route}${search && `?${search}`}`;
}

/** @param plain for a server of the original report, which knows no subprotocol. */
export function webSocket(target: Target, ear: Ear, plain: boolean): Wire {
  const { token, query } = target;
  const protocols = plain ? [] : ["synap.v1"];
  let inQuery: string | undefined;
  if (token && TOKEN.test(token) && !plain) protocols.push(`bearer.${token}`);
  else inQuery = token;
  const url = address({ ...target, query: { ...query, token: inQuery } }, "subscribe");
  const socket = new WebSocket(url.replace(/^http/, "ws"), protocols);
  let isOpen = false;
  let askedMs: number | undefined;
  const opened = (speaksV1: boolean) => {
    if (isOpen) return;
    isOpen = true;
    ear.onOpen(speaksV1);
  };
  // A server of ours lets a page in before it says no, and says something at once to who may stay.
  socket.onopen = () => socket.protocol !== "synap.v1" && opened(false);
  socket.onmessage = ({ data }) => {
    if (data === "pong") return ear.onPong();
    if (data.length > MAX_MESSAGE_CHARS) return ear.onEnd(TOO_LARGE);
    const message = read(data);
    if (!message) return;
    opened(true);
    if ("control" in message && message.control === "synap.closing") {
      const asked = message.data.reconnectAfterMs;
      if (typeof asked === "number" && asked >= 0) askedMs = asked;
    }
    ear.onMessage(message);
  };
  socket.onclose = ({ code, reason }) =>
    ear.onEnd({
      code,
      reason: reason || (isOpen || code !== 1006 ? `the connection ended (${code})` : "the server was not reached"),
      isFinal: code >= 4500 || code === 1009, // which may stand for 4540
      askedMs,
    });
  return {
    kind: "websocket",
    send: (text) => {
      if (socket.readyState === 1) socket.send(text);
    },
    close: () => {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    },
  };
}

export function eventStream(target: Target, ear: Ear): Wire {
  const stop = new AbortController();
  const ended = (failure: Failure) => {
    if (!stop.signal.aborted) ear.onEnd(failure);
    stop.abort();
  };
  // What a browser says of it may hold the address, with all that is secret in it.
  void listen(target, ear, stop.signal).then(ended, () => ended({ reason: "the stream was cut, or never began" }));
  return { kind: "sse", send: () => undefined, close: () => stop.abort() };
}

async function listen(target: Target, ear: Ear, signal: AbortSignal): Promise<Failure> {
  const headers: Record<string, string> = { Accept: "text/event-stream" };
  if (target.token) headers.Authorization = `Bearer ${target.token}`;
  const response = await fetch(address(target, "events"), {
    headers,
    signal,
    cache: "no-store",
    redirect: "error", // it would take the token along, to wherever the answer says
  });
  if (!response.ok || !response.body) {
    const body = (await response.json().catch(() => null)) as { details?: unknown } | null;
    const details = body?.details;
    const reason = typeof details === "string" ? details : `the server answered ${response.status}`;
    return { reason, code: response.status, isFinal: isFinalStatus(response.status) };
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let isOpen = false;
  let askedMs: number | undefined;
  // What is kept of an event that has not ended is bounded; each character is read once.
  let fields: Record<string, string> = {};
  let line = "";
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done || signal.aborted) return { reason: "the stream ended", askedMs };
    ear.onPong(); // also a comment line says that the server lives
    const pieces = value.split("\n");
    const rest = pieces.length - 1;
    for (const [n, piece] of pieces.entries()) {
      line += piece;
      size += piece.length;
      if (size > MAX_MESSAGE_CHARS) return TOO_LARGE;
      if (n === rest) break;
      if (/^\r?$/.test(line)) {
        take(fields);
        fields = {};
        size = 0;
      }
      const [, name, text] = /^(\w+): ?(.*?)\r?$/s.exec(line) ?? []; // JSON may hold U+2028
      if (name) fields[name] = text as string;
      line = "";
    }
  }

  function take({ data, event: control, retry }: Record<string, string>) {
    // Only our server's own events have names.
    const text = control ? /^synap\./.test(control) && `{"type":"${control}","data":${data}}` : data;
    const message = data && read(text); // most events have none: they are comments
    if (message && !isOpen) {
      // Not before: a server that drains says when to come back, and nothing else.
      isOpen = true;
      askedMs = undefined;
      ear.onOpen(true);
    }
    if (retry && (!isOpen || control === "synap.closing")) askedMs = Number(retry);
    if (message && !signal.aborted) ear.onMessage(message);
  }
}
