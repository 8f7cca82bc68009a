/** Fakes of the network and the clock: the test is the server, and advances the time. */
import "../src/shared.js"; // loaded already, so that it does not have to be waited for
import "../src/stream.js";
import { afterEach, beforeEach, vi } from "vitest";
import type { SubscribeOptions } from "../src/options.js";
import type { State } from "../src/state.js";
import { subscribe } from "../src/subscription.js";

const setImmediate = globalThis.setImmediate;

/** Run everything that does not wait for a timer. */
export async function settle(): Promise<void> {
  for (let round = 0; round < 10; round++) await new Promise<void>((resolve) => setImmediate(resolve));
}

/** Advance the time. */
export async function pass(ms: number): Promise<void> {
  await settle();
  await vi.advanceTimersByTimeAsync(ms);
  await settle();
}

/** A fake WebSocket. `all` has every socket in order; the last one is the current one. */
export class ScriptedSocket {
  static all: ScriptedSocket[] = [];
  /** Every handshake fails immediately, as with a proxy that blocks WebSockets. */
  static areBlocked = false;
  /** The server has connections with many rooms. */
  static haveRooms = false;

  static get last(): ScriptedSocket {
    const found = this.all.at(-1);
    if (!found) throw new Error("no socket was opened");
    return found;
  }

  readyState = 0;
  protocol = "";
  readonly sent: string[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  onerror: (() => void) | null = null;

  constructor(
    readonly url: string,
    readonly protocols: string[],
  ) {
    if (/[\s#]/.test(url)) throw new DOMException("no such URL", "SyntaxError");
    if (protocols[0] === "synap.v2" && !ScriptedSocket.haveRooms) {
      queueMicrotask(() => this.end(1006)); // a server that has no connections with many rooms
      return;
    }
    ScriptedSocket.all.push(this);
    if (ScriptedSocket.areBlocked) queueMicrotask(() => this.end(1006));
  }

  get after(): string | null {
    return new URL(this.url).searchParams.get("after");
  }
  get token(): string | undefined {
    return this.protocols.find((each) => each.startsWith("bearer."))?.slice("bearer.".length);
  }
  get isClosed(): boolean {
    return this.readyState === 3;
  }
  /** The actions sent to the server. */
  get actions(): unknown[] {
    return this.sent.filter((text) => text.startsWith("{")).map((text) => JSON.parse(text) as unknown);
  }
  get pings(): number {
    return this.sent.filter((text) => text === "ping").length;
  }

  send(text: string): void {
    if (this.readyState !== 1) throw new DOMException("not open", "InvalidStateError");
    this.sent.push(text);
  }
  close(): void {
    if (this.isClosed) return;
    this.readyState = 3;
    queueMicrotask(() => this.onclose?.({ code: 1005, reason: "" }));
  }

  // ---- the server ----

  /** @param protocol the subprotocol that the server selects. */
  accept(protocol = "synap.v1"): this {
    this.readyState = 1;
    this.protocol = protocol;
    this.onopen?.();
    // An accepted client receives a message immediately.
    return protocol === "synap.v1" ? this.control("hello") : this;
  }
  /** Accept and close, as for a page with an invalid credential. */
  acceptAndRefuse(code: number, reason = ""): void {
    this.readyState = 1;
    this.protocol = "synap.v1";
    this.onopen?.();
    this.end(code, reason);
  }
  text(data: unknown): this {
    if (!this.isClosed) this.onmessage?.({ data });
    return this;
  }
  json(value: unknown): this {
    return this.text(JSON.stringify(value));
  }
  control(type: string, data: object = {}): this {
    return this.json({ type: `synap.${type}`, data });
  }
  subscribed(cursor: string, recovered = true): this {
    return this.control("subscribed", { room: "user_1", cursor, replayed: 0, recovered });
  }
  /** Send notifications with their cursors as ids. */
  notify(...cursors: string[]): this {
    for (const cursor of cursors) this.json(notification(cursor));
    return this;
  }
  end(code: number, reason = ""): void {
    if (this.isClosed) return;
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }
}

export const notification = (cursor: string, rest: object = {}) => ({
  id: cursor,
  type: "note.creation.progress",
  data: {},
  status: "pending" as const,
  cursor,
  ...rest,
});

/** A fake request for an event stream. `all` has every request in order. */
export class ScriptedStream {
  static all: ScriptedStream[] = [];
  /** The answers to requests for the state of jobs, by path; of all others: 404. */
  static answers: Record<string, () => unknown> = {};
  /** These requests. */
  static asked: string[] = [];
  /** Every request fails immediately. */
  static areBlocked = false;

  static get last(): ScriptedStream {
    const found = this.all.at(-1);
    if (!found) throw new Error("nothing was fetched");
    return found;
  }

  static fetch = (url: string, init: RequestInit): Promise<Response> =>
    new Promise((resolve, reject) => {
      if (url.endsWith("/subscribe")) {
        if (ScriptedStream.areBlocked) reject(new TypeError("fetch failed"));
        return resolve(new Response("", { status: ScriptedSocket.haveRooms ? 426 : 404 }));
      }
      const path = new URL(url).pathname;
      if (/\/(jobs|users)\//.test(path)) {
        const answer = ScriptedStream.answers[path];
        ScriptedStream.asked.push(url);
        init.signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
        if (ScriptedStream.areBlocked) return reject(new TypeError("fetch failed"));
        void Promise.resolve(answer?.()).then((body) =>
          resolve(new Response(JSON.stringify(body ?? { code: "not_found", details: "no such job" }), { status: body ? 200 : 404 })),
        );
        return;
      }
      const stream = new ScriptedStream(url, init, resolve, reject);
      ScriptedStream.all.push(stream);
      init.signal?.addEventListener("abort", () => stream.abort());
      if (ScriptedStream.areBlocked) reject(new TypeError("fetch failed"));
    });

  isAborted = false;
  private body: ReadableStreamDefaultController<Uint8Array> | undefined;

  private constructor(
    readonly url: string,
    readonly init: RequestInit,
    private readonly resolve: (response: Response) => void,
    private readonly reject: (error: unknown) => void,
  ) {}

  get after(): string | null {
    return new URL(this.url).searchParams.get("after");
  }

  private abort(): void {
    this.isAborted = true;
    const error = new DOMException("aborted", "AbortError");
    this.reject(error);
    this.body?.error(error);
  }
  /** Accept the subscriber, with a first event. */
  accept(): this {
    const body = new ReadableStream<Uint8Array>({ start: (controller) => void (this.body = controller) });
    this.resolve(new Response(body));
    return this.write("retry: 1000\n\nevent: synap.hello\ndata: {}\n\n");
  }
  /** Answer as a draining server: only with the delay of the reconnect. */
  drain(ms: number): void {
    this.resolve(new Response(`retry: ${ms}\n\n`));
  }
  refuse(status: number, answer: unknown = ""): void {
    this.resolve(new Response(typeof answer === "string" ? answer : JSON.stringify(answer), { status }));
  }
  bytes(...pieces: Uint8Array[]): this {
    for (const piece of pieces) this.body?.enqueue(piece);
    return this;
  }
  write(text: string): this {
    return this.bytes(new TextEncoder().encode(text));
  }
  end(): void {
    this.body?.close();
  }
  /** Lose the network. */
  fail(): void {
    this.body?.error(new TypeError("network error"));
  }
}

/** Install the fakes for every test of a file. */
export function useScriptedWorld(): void {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"] });
    vi.spyOn(Math, "random").mockReturnValue(0);
    ScriptedSocket.all = [];
    ScriptedStream.all = [];
    ScriptedStream.asked = [];
    ScriptedStream.answers = {};
    ScriptedSocket.haveRooms = false;
    ScriptedSocket.areBlocked = ScriptedStream.areBlocked = false;
    vi.stubGlobal("WebSocket", ScriptedSocket);
    vi.stubGlobal("fetch", ScriptedStream.fetch);
  });
  afterEach(() => {
    vi.useRealTimers();
    vi.unstubAllGlobals();
    vi.unstubAllEnvs();
    vi.restoreAllMocks();
  });
}

/** Subscribe, and record all callbacks. */
export function recordSubscription(options: SubscribeOptions = {}, room = "user_1") {
  const recorded = {
    notifications: [] as string[],
    states: [] as State[],
    gaps: [] as string[],
    presence: [] as unknown[],
  };
  const subscription = subscribe(room, {
    url: "https://rooms.example",
    ...options,
    onNotification: (each) => {
      recorded.notifications.push(each.cursor ?? "");
      options.onNotification?.(each);
    },
    onStateChange: (state) => {
      recorded.states.push(state);
      options.onStateChange?.(state);
    },
    onGap: (gap) => {
      recorded.gaps.push(gap);
      options.onGap?.(gap);
    },
    onPresence: (presence) => {
      recorded.presence.push(presence);
      options.onPresence?.(presence);
    },
  });
  return { subscription, ...recorded, statuses: () => recorded.states.map(({ status }) => status) };
}

/** Subscribe, and accept the connection. */
export async function connected(options: SubscribeOptions = {}, room?: string) {
  const listener = recordSubscription(options, room);
  await settle();
  const socket = ScriptedSocket.last.accept();
  await settle();
  return { ...listener, socket };
}
