/** Server-Sent Events, for networks that block WebSockets. This module is loaded only there. */
import { shown } from "./options.js";
import { isFinalStatus, read, TOKEN_EXPIRED, type Failure } from "./protocol.js";
import {
  address, MAX_MESSAGE_CHARS, REASONS, TOO_LARGE, type Target, type Transport, type TransportCallbacks,
} from "./transports.js";

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

/** Open an event stream. */
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
