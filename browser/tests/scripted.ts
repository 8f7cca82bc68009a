/** Fakes of WebSocket and fetch: the test plays the server. Everything else is real. */
import "../src/shared.js"; // loaded already, so that it does not have to be waited for
import "../src/stream.js";
import { vi } from "vitest";

/** The members of a notification that a test sets. A room adds the others. */
export interface Note {
  /** null: no id. */
  id?: string | null;
  type?: string;
  data?: Record<string, unknown>;
  status?: "pending" | "success" | "error";
  cursor?: string;
}

/** A fake WebSocket: the test is its server. The newest is the last of `Socket.all`. */
export class Socket {
  static all: Socket[] = [];
  /** Called for each new socket: a server that answers by itself. */
  static onDial: ((socket: Socket) => void) | undefined;

  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  protocol = "";
  readyState = 0;
  readonly sent: string[] = [];

  constructor(
    readonly url: string,
    readonly protocols: string[] = [],
  ) {
    if (protocols[0] === "synap.v2") {
      queueMicrotask(() => this.end()); // a server that has no connections with many rooms
      return;
    }
    Socket.all.push(this);
    Socket.onDial?.(this);
  }

  /** The sockets that are connecting or open. */
  static get live(): Socket[] {
    return Socket.all.filter(({ readyState }) => readyState < 2);
  }

  static get last(): Socket {
    const last = Socket.all.at(-1);
    if (!last) throw new Error("no socket was opened");
    return last;
  }

  get room(): string {
    return decodeURIComponent(new URL(this.url).pathname.split("/").at(-2) ?? "");
  }

  asked(name: string): string | null {
    return new URL(this.url).searchParams.get(name);
  }

  /** The messages sent to the server, without pings. */
  get said(): unknown[] {
    return this.sent.filter((text) => text !== "ping").map((text) => JSON.parse(text) as unknown);
  }

  // ---- the server ----

  accept(protocol: "synap.v1" | "" = "synap.v1"): this {
    this.protocol = protocol;
    this.readyState = 1;
    this.onopen?.();
    if (protocol) this.text('{"type":"synap.hello","data":{}}'); // an accepted client receives a message immediately
    return this;
  }

  text(text: unknown): void {
    this.onmessage?.({ data: text });
  }

  notify({ id = "n1", type = "note.creation.progress", data = {}, ...rest }: Note = {}): void {
    this.text(JSON.stringify({ id: id ?? undefined, type, data, cursor: `c-${id}`, ...rest }));
  }

  control(type: string, data: Record<string, unknown>): void {
    this.text(JSON.stringify({ type: `synap.${type}`, data }));
  }

  subscribed(cursor = "c-0", recovered = true): void {
    this.control("subscribed", { room: this.room, cursor, replayed: 0, recovered });
  }

  end(code = 1006, reason = ""): void {
    if (this.readyState > 1) return;
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  // ---- the client ----

  send(text: string): void {
    if (this.readyState !== 1) throw new Error("not open");
    this.sent.push(text);
  }

  close(): void {
    this.readyState = 3;
  }
}

/** A fake request for an event stream: the test is its server. */
export class Stream {
  static all: Stream[] = [];
  private readonly source: ReadableStream<Uint8Array>;
  private controller!: ReadableStreamDefaultController<Uint8Array>;
  private respond!: (response: Response) => void;
  private fail!: (error: unknown) => void;
  readonly answer: Promise<Response>;

  constructor(
    readonly url: string,
    readonly init: RequestInit & { headers: Record<string, string> },
  ) {
    Stream.all.push(this);
    this.source = new ReadableStream({ start: (controller) => void (this.controller = controller) });
    this.answer = new Promise((resolve, reject) => {
      this.respond = resolve;
      this.fail = reject;
    });
    init.signal?.addEventListener("abort", () => {
      const error = new DOMException("aborted", "AbortError");
      this.fail(error);
      try {
        this.controller.error(error);
      } catch {
        // It has ended.
      }
    });
  }

  static get last(): Stream {
    const last = Stream.all.at(-1);
    if (!last) throw new Error("nothing was fetched");
    return last;
  }

  get isStopped(): boolean {
    return this.init.signal?.aborted ?? false;
  }

  asked(name: string): string | null {
    return new URL(this.url).searchParams.get(name);
  }

  accept(): this {
    this.respond(new Response(this.source, { headers: { "Content-Type": "text/event-stream" } }));
    // A server accepts a subscriber with this first event.
    this.controller.enqueue(new TextEncoder().encode("retry: 1000\n\nevent: synap.hello\ndata: {}\n\n"));
    return this;
  }

  refuse(status: number, body = ""): void {
    this.respond(new Response(body, { status }));
  }

  /** Fail without a response. */
  lose(): void {
    this.fail(new TypeError("Failed to fetch"));
  }

  bytes(piece: Uint8Array): void {
    this.controller.enqueue(piece);
  }

  text(text: string): void {
    this.bytes(new TextEncoder().encode(text));
  }

  end(): void {
    this.controller.close();
  }
}

/** A server that accepts every connection to a room, keeps a log, and replays: `room.publish({ id: "n1" })`. */
export class Room {
  readonly log: string[] = [];

  constructor(private readonly received = 0) {
    Socket.onDial = (socket) => queueMicrotask(() => this.welcome(socket));
  }

  private welcome(socket: Socket): void {
    if (socket.readyState !== 0) return;
    socket.accept();
    const after = socket.asked("after");
    const acks = Socket.all.flatMap(({ said }) => said as { cursor?: string }[]).map(({ cursor }) => Number(cursor?.slice(2)));
    const acknowledged = socket.room.startsWith("request_") ? 0 : Math.max(this.received, ...acks);
    const start = after === "latest" ? this.log.length : !after ? acknowledged : after === "earliest" ? 0 : Number(after.slice(2));
    for (const text of this.log.slice(start)) socket.text(text);
    socket.subscribed(`c-${this.log.length}`);
  }

  publish({ id = `n${this.log.length + 1}`, type = "note.creation.progress", data = {}, ...rest }: Note = {}): void {
    const text = JSON.stringify({ id: id ?? undefined, type, data, cursor: `c-${this.log.length + 1}`, ...rest });
    this.log.push(text);
    for (const socket of Socket.live) if (socket.readyState === 1) socket.text(text);
  }
}

/** Install the fakes. `vi.unstubAllGlobals()` removes them. */
export function script(): void {
  Socket.all = [];
  Socket.onDial = undefined;
  Stream.all = [];
  vi.stubGlobal("WebSocket", Socket);
  vi.stubGlobal("fetch", (url: string, init: Stream["init"]) =>
    url.endsWith("/subscribe") ? Promise.resolve(new Response("", { status: 404 })) : new Stream(url, init).answer,
  );
}

const realTimeout = globalThis.setTimeout;

/** Run everything that does not wait for a timer, including messages between tabs and locks. */
export async function settle(rounds = 3): Promise<void> {
  for (let round = 0; round < rounds; round++) await new Promise<void>((resolve) => void realTimeout(resolve, 0));
}

/** Wait until a condition holds, also with fake timers. */
export async function until(isSo: () => boolean): Promise<void> {
  for (let round = 0; round < 5_000; round++) {
    if (isSo()) return;
    await settle(1);
  }
  throw new Error(`condition not met: ${isSo.toString()}`);
}
