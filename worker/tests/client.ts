/** A client of the Worker's routes, in the same process. */

import { env, exports } from "cloudflare:workers";
import { SignJWT } from "jose";
import { vi } from "vitest";

import type { NotificationRoom } from "../src/rooms/room";

export const SECRET = "a-secret-that-everybody-may-know-0001";
export const KEY = "a-key-that-everybody-may-know-00000001";
export const V1 = "synap.v1";

export type Json = Record<string, any>; // eslint-disable-line -- what came over the wire


export function roomStub(room: string): DurableObjectStub<NotificationRoom> {
  return env.NOTIFICATION_ROOM.get(env.NOTIFICATION_ROOM.idFromName(room));
}

/** Advance the clock, and stop it there. I/O continues. Afterwards call `vi.useRealTimers()`. */
export function later(ms: number): void {
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + ms });
}

/** Return a new user and their room. */
export function freshUser(): { user: string; room: string } {
  const user = crypto.randomUUID();
  return { user, room: `user_${user}` };
}

export async function token(claims: Json, expiresInS = 900): Promise<string> {
  const now = Math.floor(Date.now() / 1000);
  return new SignJWT({ jti: crypto.randomUUID(), iat: now, exp: now + expiresInS, ...claims })
    .setProtectedHeader({ alg: "HS256" })
    .sign(new TextEncoder().encode(SECRET));
}

export function request(path: string, credential: string, init: RequestInit = {}): Promise<Response> {
  const worker = (exports as unknown as { default: Fetcher }).default;
  return worker.fetch(`http://worker${path}`, {
    ...init,
    headers: { ...(init.headers as Record<string, string>), Authorization: `Bearer ${credential}` },
  });
}

export async function publish(room: string, id: string, members: Json = {}): Promise<Json> {
  const response = await request(`/rooms/${room}/broadcast`, KEY, {
    method: "POST",
    body: JSON.stringify({ type: "note.creation.completed", data: {}, id, ...members }),
    headers: { "Content-Type": "application/json" },
  });
  return (await response.json()) as Json;
}

/** Publish `count` small notifications with the ids n0, n1, …, and return their cursors. */
export async function fill(room: string, count: number, first = 0): Promise<string[]> {
  const notifications = Array.from({ length: count }, (_, n) => ({
    rooms: [room], id: `n${first + n}`, type: "note.creation.completed", data: {},
  }));
  const response = await request("/broadcast", KEY, {
    method: "POST",
    body: JSON.stringify({ notifications }),
    headers: { "Content-Type": "application/json" },
  });
  const { results } = (await response.json()) as Json;
  return results.map((result: Json) => result["rooms"][room].cursor);
}

export async function history(room: string, credential: string, query = ""): Promise<Json> {
  return (await (await request(`/rooms/${room}/history${query}`, credential)).json()) as Json;
}

/** A subscriber over a WebSocket. */
export class Subscriber {
  readonly #received: (string | number)[] = [];
  #wake: () => void = () => undefined;

  private constructor(readonly socket: WebSocket) {
    socket.addEventListener("message", ({ data }) => this.#take(data as string));
    socket.addEventListener("close", ({ code }) => this.#take(code));
    socket.accept();
  }

  static async open(room: string, credential: string, query = "", v1 = true): Promise<Subscriber> {
    const headers = { Upgrade: "websocket", ...(v1 ? { "Sec-WebSocket-Protocol": V1 } : {}) };
    const response = await request(`/rooms/${room}/subscribe${query}`, credential, { headers });
    if (response.webSocket === null) throw new Error(`refused: ${response.status}`);
    return new Subscriber(response.webSocket);
  }

  send(message: string): void {
    this.socket.send(message);
  }

  /** The next text. */
  async text(): Promise<string> {
    const received = await this.#next();
    if (typeof received === "number") throw new Error(`closed with ${received}`);
    return received;
  }

  async json(): Promise<Json> {
    return JSON.parse(await this.text()) as Json;
  }

  /** Return the data of the next control frame of a type; skip other messages. */
  async control(type: string): Promise<Json> {
    for (;;) {
      const message = await this.json();
      if (message["type"] === type) return message["data"] as Json;
    }
  }

  /** Read until the close, and return its code. */
  async closed(): Promise<number> {
    for (;;) {
      const received = await this.#next();
      if (typeof received === "number") return received;
    }
  }

  async #next(): Promise<string | number> {
    while (this.#received.length === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
    return this.#received.shift()!;
  }

  #take(received: string | number): void {
    this.#received.push(received);
    this.#wake();
  }
}
