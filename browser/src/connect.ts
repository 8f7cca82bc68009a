/** Connect to a room: try one way after the other, and remember which of them work. */
import { openConnection, type Connection, type ConnectionCallbacks, type Way } from "./connection.js";
import type { Failure } from "./protocol.js";
import { hasRooms, joinRoom, type Wanted } from "./rooms.js";
import { bounded, findToken } from "./token.js";
import { canStream } from "./transports.js";

/** `onEnd`: the last way has failed, or the open connection was lost. It closes the connector. */
export interface ConnectorCallbacks extends Omit<ConnectionCallbacks, "onOpen"> {
  onOpen(hasControl: boolean, connection: Connection): void;
}

export function createConnector(wanted: Wanted, callbacks: ConnectorCallbacks) {
  let attempt: object | undefined; // an earlier one is ignored
  let connection: Connection | undefined;
  let prefersSse = false;
  let hadSocket = false; // a WebSocket with control frames was open before

  const close = (isDead?: boolean) => {
    attempt = undefined;
    connection?.close(isDead);
    connection = undefined;
  };
  const end = (failure: Failure) => {
    close();
    callbacks.onEnd(failure);
  };

  return {
    /**
     * Open a connection.
     *
     * @param ready resolves when the position is known.
     * @param failures consecutive failed attempts.
     * @param isDead a connection that is open is not to be used again.
     */
    open: async (ready: Promise<void> | undefined, failures: number, isDead?: boolean) => {
      close(isDead);
      const current = (attempt = {});
      const isOver = () => current !== attempt;
      let last = (await bounded(ready)) as Failure | undefined;
      if (isOver()) return;
      if (last) return end(last);
      let token: string | null | undefined; // null: there is none
      const { base, room } = wanted;
      const ways: Way[] = prefersSse ? ["sse", "v2", "v1", "plain"] : ["v2", "v1", "plain", "sse"];

      const canHelp = (way: Way) => {
        if (way === "sse") {
          // After a short outage of the server, do not switch to another transport.
          return canStream() && (prefersSse || !hadSocket || failures > 1);
        }
        const known = hasRooms.get(base);
        if (way === "v2") return known !== false;
        // A proxy that drops one handshake without a response drops the next one, too.
        if (last?.isTimeout || known) return false;
        // Without a token, also try a server that supports no subprotocol: a browser rejects a handshake whose
        // response lacks the subprotocol that it has offered. With a token, never: the token would go into the URL.
        return way === "v1" || !(token || wanted.query().presence || hadSocket);
      };
      const tryWay = (way: Way) =>
        new Promise<void>((resolve) => {
          let isOpen = false;
          const events: ConnectionCallbacks = {
            onOpen: (hasControl) => {
              isOpen = true;
              if (way !== "sse") {
                prefersSse = false;
                hadSocket ||= hasControl;
              }
              callbacks.onOpen(hasControl, connection!);
            },
            onMessage: callbacks.onMessage,
            onEnd: (failure) => {
              if (isOver()) return;
              last = failure;
              // A rejected handshake costs no time, so then WebSockets are still tried first.
              if (failure.isTimeout && way !== "sse") prefersSse = true;
              const { wasOpen = isOpen, isFinal, code } = failure;
              hadSocket ||= wasOpen && way === "v2";
              // A close code of PROTOCOL.md, or 1011: the server was reached, so another transport would not help.
              if (!wasOpen && !isFinal && !/^(4...|1011)$/.test(`${code}`)) return resolve();
              prefersSse = prefersSse && isOpen;
              end(failure);
            },
          };
          connection =
            way === "v2"
              ? joinRoom(wanted, events)
              : openConnection({ base, room, token: token!, query: wanted.query() }, way, events);
        });

      for (const way of ways) {
        if (!canHelp(way)) continue;
        if (way !== "v2" && token === undefined) {
          const found: Partial<Failure> = (last as Failure | undefined)?.token ? last! : await findToken(wanted.options);
          if (isOver()) return;
          token = found.token ?? null;
          if (!token && found.reason) return end(found as Failure);
          if (!canHelp(way)) continue;
        }
        await tryWay(way);
        if (isOver()) return;
      }
      prefersSse = false;
      end(last!);
    },
    /** Send a new token over the open connection. */
    authenticate: (token: string | undefined, room?: string) => connection?.authenticate(token, room),
    send: (text: string) => connection?.send(text),
    close,
  };
}
