/** Fan-out: the open connections of a room. */

import type { Entry } from "../stores/entries";
import type { Connection } from "./connection";
import { numbered } from "./numbers";

export class Hub {
  readonly #connections = new Map<WebSocket, Connection>();

  get size(): number {
    return this.#connections.size;
  }

  get(socket: WebSocket): Connection | undefined {
    return this.#connections.get(socket);
  }

  has({ socket }: Connection): boolean {
    return this.#connections.has(socket);
  }

  add(connection: Connection): void {
    this.#connections.set(connection.socket, connection);
  }

  remove({ socket }: Connection): void {
    this.#connections.delete(socket);
  }

  /** Return a copy, so that connections may be closed during an iteration. */
  all(): Connection[] {
    return [...this.#connections.values()];
  }

  /** Return the connections whose replay is complete. */
  live(): Connection[] {
    return this.all().filter(({ isLive }) => isLive);
  }

  /** Return the connections that asked for presence. */
  watchers(): Connection[] {
    return this.all().filter(({ attachment }) => attachment.wantsPresence);
  }
}

/** Send entries to connections. */
export function deliver(entries: Entry[], connections: Connection[]): void {
  for (const connection of connections) {
    for (const entry of entries) connection.send(numbered(connection, entry));
  }
}
