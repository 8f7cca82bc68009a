/** The transports: WebSocket, and Server-Sent Events where WebSockets are blocked. */
import { shown } from "./options.js";
import {
  isFinalStatus, read, TOKEN_EXPIRED, UNAUTHORIZED, type ControlFrame, type Delivered, type Failure,
} from "./protocol.js";

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
const MAX_MESSAGE_CHARS = 1024 * 1024;
const TOO_LARGE: Failure = { reason: "the server sent a message of more than 1 MiB" };

/** The characters of a subprotocol (RFC 9110, section 5.6.2). */
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/;

/** Build the URL without `URL` and `URLSearchParams`, which drop parameters in React Native up to 0.78. */
export function address({ base, room, query = {} }: Target, route: string): string {
  const given = Object.entries(query).filter(([, value]) => value) as [string, string][];
  const search = given.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
  return `${base}/${room ? `rooms/${encodeURIComponent(room)}/` : ""}${route}${search && `?${search}`}`;
}

/** Reasons for close codes that came without one. See PROTOCOL.md, "Close codes". */
const REASONS: Record<number, string> = {
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

/** Find out why fetch failed. The browser hides the cause, so this is a guess. */
async function diagnose(base: string, signal: AbortSignal): Promise<Failure> {
  const { origin, protocol } = (globalThis.location ?? {}) as Partial<Location>;
  const url = shown(base);
  if (protocol === "https:" && /^http:/.test(base) && !/\/\/(localhost|127\.|\[::1\])/.test(url))
    return { reason: `a page of ${origin} cannot use ${url}: use https`, isFinal: true };
  if (!/^https?:/.test(protocol ?? "") || `${base}/`.startsWith(`${origin}/`)) return { reason: `cannot reach ${url}` };
  // An opaque response is enough: it shows that the server is reachable.
  const init: RequestInit = { mode: "no-cors", cache: "no-store", credentials: "omit", signal };
  const answers = await fetch(`${base}/health`, init).then(
    () => true,
    () => false,
  );
  const why = `it responds, but does not allow origin ${origin} (--allowed-origins), or is not a room server`;
  return { reason: answers ? `cannot use ${url}: ${why}` : `cannot reach ${url}, or this page's policy forbids it` };
}

export function eventStream(target: Target, callbacks: TransportCallbacks): Transport {
  const stop = new AbortController();
  const finish = (failure: Failure) => {
    if (!stop.signal.aborted) callbacks.onEnd(failure);
    stop.abort();
  };
  // The browser's error message may contain the URL with its token, so it is not shown.
  void readStream(target, callbacks, stop.signal).then(finish, () => finish({ reason: "the stream was interrupted" }));
  return { kind: "sse", send: () => undefined, close: () => stop.abort() };
}

async function readStream(target: Target, callbacks: TransportCallbacks, signal: AbortSignal): Promise<Failure> {
  const headers: Record<string, string> = { Accept: "text/event-stream" };
  if (target.token) headers.Authorization = `Bearer ${target.token}`;
  let response: Response;
  try {
    response = await fetch(address(target, "events"), {
      headers,
      signal,
      cache: "no-store",
      redirect: "error", // a redirect could send the token to another host
    });
  } catch {
    return diagnose(target.base, signal);
  }
  const { status: code, ok, body } = response;
  // Most likely the fallback page of a single-page application.
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
  let ending: Failure = { reason: "the stream ended" };
  let retryAfterMs: number | undefined;
  // The size of an unfinished event is bounded, and each character is scanned once.
  let fields: Record<string, string> = {};
  let line = "";
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done || signal.aborted) return { ...ending, retryAfterMs };
    callbacks.onPong(); // comment lines count as keepalives
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
      const [, name, text] = /^(\w+): ?(.*?)\r?$/s.exec(line) ?? []; // JSON may contain U+2028
      if (name) fields[name] = text as string;
      line = "";
    }
  }

  function take({ data, event: control, retry }: Record<string, string>) {
    // Only control frames have an event name.
    const text = control ? /^synap\./.test(control) && `{"type":"${control}","data":${data}}` : data;
    const message = data && read(text); // undefined for comments
    if (message && !isOpen) {
      // Not earlier: a draining server sends only `retry`.
      isOpen = true;
      retryAfterMs = undefined;
      callbacks.onOpen(true);
    }
    // A stream cannot renew its token, so it ends when the token expires.
    if (control === "synap.token_expiring") ending = { reason: REASONS[TOKEN_EXPIRED]!, code: TOKEN_EXPIRED };
    // Only digits count; an absent field is tested as "undefined".
    if ((!isOpen || control === "synap.closing") && /^\d+$/.test(retry!)) retryAfterMs = +retry!;
    if (message && !signal.aborted) callbacks.onMessage(message);
  }
}
