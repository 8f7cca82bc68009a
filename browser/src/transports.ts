/** The two ways to listen: a WebSocket, and Server-Sent Events where WebSockets are blocked. */
import { shown } from "./options.js";
import { isFinalStatus, read, type ControlFrame, type Delivered, type Failure } from "./protocol.js";

/** What a connection tells. After `onEnd` it tells nothing more. */
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

/** Without `URL` and `URLSearchParams`: those of React Native up to 0.78 lose what they are given. */
function address({ base, room, query }: Target, route: string): string {
  const given = Object.entries(query).filter(([, value]) => value) as [string, string][];
  const search = given.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
  return `${base}/rooms/${encodeURIComponent(room)}/${route}${search && `?${search}`}`;
}

/** What a close code says where the server has given no reason. See PROTOCOL.md, "Close codes". */
const REASONS: Record<number, string> = {
  1012: "the server restarts",
  4008: "this client reads too slowly",
  4009: "this client was silent",
  4012: "the server restarts",
  4029: "this client sends too much",
  4401: "the token has expired",
  4501: "the token is missing or not valid",
  4503: "the token does not open this room",
  4504: "the token was revoked",
  4529: "this user has too many connections",
};
/** An `error` without a `close` behind it, as some polyfills have it, is an end, too. */
const CLOSE_WITHIN_MS = 250;

/** @param plain for a server of the original report, which knows no subprotocol. */
export function webSocket(target: Target, ear: TransportCallbacks, plain: boolean): Transport {
  const { token, query } = target;
  const protocols = plain ? [] : ["synap.v1"];
  let inQuery: string | undefined;
  if (token && TOKEN.test(token) && !plain) protocols.push(`bearer.${token}`);
  else inQuery = token;
  const url = address({ ...target, query: { ...query, token: inQuery } }, "subscribe");
  const socket = new WebSocket(url.replace(/^http/, "ws"), protocols);
  let isOpen = false;
  let retryAfterMs: number | undefined;
  const opened = (speaksV1: boolean) => {
    if (isOpen) return;
    isOpen = true;
    ear.onOpen(speaksV1);
  };
  let isOver = false;
  /** A polyfill may call what is no function any more, so they are replaced, and not taken away. */
  const leave = () => {
    isOver = true;
    socket.onopen = socket.onmessage = socket.onerror = socket.onclose = () => undefined;
  };
  const end = (failure: Failure) => {
    if (isOver) return;
    leave();
    ear.onEnd(failure);
  };
  const closed = (code: number, reason?: string) =>
    end({
      code,
      reason: reason || REASONS[code] || (isOpen || code !== 1006 ? `the connection ended (${code})` : "the server was not reached"),
      isFinal: code >= 4500 || code === 1009, // which may stand for 4540
      retryAfterMs,
    });
  // A server of ours lets a page in before it says no, and says something at once to who may stay.
  socket.onopen = () => socket.protocol !== "synap.v1" && opened(false);
  socket.onmessage = ({ data }) => {
    if (data === "pong") return ear.onPong();
    if (typeof data !== "string") return;
    if (data.length > MAX_MESSAGE_CHARS) return end(TOO_LARGE);
    const message = read(data);
    if (!message) return;
    opened(true);
    if ("control" in message && message.control === "synap.closing") {
      const asked = message.data.reconnectAfterMs;
      if (typeof asked === "number" && asked >= 0) retryAfterMs = asked;
    }
    ear.onMessage(message);
  };
  socket.onerror = () => void setTimeout(closed, CLOSE_WITHIN_MS, 1006);
  // React Native gives no code where no connection could be made.
  socket.onclose = (event) => closed(event?.code ?? 1006, event?.reason);
  return {
    kind: "websocket",
    send: (text) => {
      try {
        if (socket.readyState === 1) socket.send(text);
      } catch {
        queueMicrotask(() => closed(1006)); // and not while the caller is at work
      }
    },
    close: () => {
      leave();
      try {
        socket.close();
      } catch {
        // A polyfill that cannot close one that is not open yet.
      }
    },
  };
}

/** Whether event streams can be read: not in React Native, which waits for the end of an answer. */
export const canStream = () => typeof TextDecoderStream !== "undefined";

/** Why there was no answer, as far as a page can tell: a browser hides it. */
async function unreached(base: string, signal: AbortSignal): Promise<Failure> {
  const { origin, protocol } = (globalThis.location ?? {}) as Partial<Location>;
  const url = shown(base);
  if (protocol === "https:" && /^http:/.test(base) && !/\/\/(localhost|127\.|\[::1\])/.test(url))
    return { reason: `a page of ${origin} may not use ${url}: it needs https`, isFinal: true };
  if (!/^https?:/.test(protocol ?? "") || `${base}/`.startsWith(`${origin}/`)) return { reason: `cannot reach ${url}` };
  // An answer that may not be read is an answer.
  const init: RequestInit = { mode: "no-cors", cache: "no-store", credentials: "omit", signal };
  const answers = await fetch(`${base}/health`, init).then(
    () => true,
    () => false,
  );
  const why = `it answers, but origin ${origin} is not allowed by it (--allowed-origins), or it is no room server`;
  return { reason: answers ? `cannot use ${url}: ${why}` : `cannot reach ${url}, or this page's policy forbids it` };
}

export function eventStream(target: Target, ear: TransportCallbacks): Transport {
  const stop = new AbortController();
  const ended = (failure: Failure) => {
    if (!stop.signal.aborted) ear.onEnd(failure);
    stop.abort();
  };
  // What a browser says of it may hold the address, with all that is secret in it.
  void listen(target, ear, stop.signal).then(ended, () => ended({ reason: "the stream was cut" }));
  return { kind: "sse", send: () => undefined, close: () => stop.abort() };
}

async function listen(target: Target, ear: TransportCallbacks, signal: AbortSignal): Promise<Failure> {
  const headers: Record<string, string> = { Accept: "text/event-stream" };
  if (target.token) headers.Authorization = `Bearer ${target.token}`;
  let response: Response;
  try {
    response = await fetch(address(target, "events"), {
      headers,
      signal,
      cache: "no-store",
      redirect: "error", // it would take the token along, to wherever the answer says
    });
  } catch {
    return unreached(target.base, signal);
  }
  const { status: code, ok, body } = response;
  // The page of a single-page app, as like as not.
  const isOther = ok && /^(text.html|application.)/i.test(response.headers.get("Content-Type") ?? "");
  if (!ok || !body || isOther) {
    const problem = (await response.json().catch(() => null)) as { details?: unknown; code?: unknown } | null;
    if (typeof problem?.details === "string") return { reason: problem.details, code, isFinal: isFinalStatus(code) };
    const hint = isOther || code === 404 || code === 405 ? `: is a room server at ${shown(target.base)}?` : "";
    const reason = `the server answered ${code}${hint}`;
    return { reason, code, isFinal: isOther || isFinalStatus(code) };
  }
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let isOpen = false;
  let isExpiring = false; // a stream takes no new token: it ends with the one that it has
  let retryAfterMs: number | undefined;
  // What is kept of an event that has not ended is bounded; each character is read once.
  let fields: Record<string, string> = {};
  let line = "";
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done || signal.aborted)
      return isExpiring ? { reason: REASONS[4401]!, code: 4401, retryAfterMs } : { reason: "the stream ended", retryAfterMs };
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
      retryAfterMs = undefined;
      ear.onOpen(true);
    }
    isExpiring ||= control === "synap.token_expiring";
    if (retry && (!isOpen || control === "synap.closing")) retryAfterMs = Number(retry);
    if (message && !signal.aborted) ear.onMessage(message);
  }
}
