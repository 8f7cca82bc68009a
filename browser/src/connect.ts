/** Connect to a room: try one way after the other, and remember which of them work. */
import type { Failure } from "./protocol.js";
import { createTimer } from "./timer.js";
import { canStream, eventStream, webSocket, type Target, type Transport, type TransportCallbacks } from "./transports.js";

/** A proxy that blocks WebSockets may drop the handshake without a response. */
const OPEN_WITHIN_MS = 10_000;

/** A WebSocket with synap.v1, one without a subprotocol, an event stream. */
type Way = "v1" | "plain" | "sse";

/** `onEnd`: the last way has failed, or the open connection was lost. It closes the connector. */
export interface ConnectionCallbacks extends Omit<TransportCallbacks, "onOpen"> {
  onOpen(speaksV1: boolean, transport: Transport): void;
}

export function createConnector(callbacks: ConnectionCallbacks) {
  const timer = createTimer();
  let attempt: object | undefined; // an earlier one is ignored
  let target: Target;
  let transport: Transport | undefined;
  let prefersSse = false;
  let hadSocket = false; // a WebSocket with synap.v1 was open before

  const close = () => {
    attempt = undefined;
    timer.stop();
    transport?.close();
    transport = undefined;
  };

  /** @param failures consecutive failed attempts. */
  const waysToConnect = (failures: number): Way[] => {
    // Without a token, also try a server that supports no subprotocol: a browser rejects a handshake whose
    // response lacks the subprotocol that it has offered. With a token, never: the token would go into the URL.
    const sockets: Way[] = target.token || target.query.presence || hadSocket ? ["v1"] : ["v1", "plain"];
    if (!canStream()) return sockets;
    if (prefersSse) return ["sse", ...sockets];
    // After a short outage of the server, do not switch to another transport.
    return hadSocket && failures < 2 ? sockets : [...sockets, "sse"];
  };

  /** Try one way after the other, and report the failure of the last one. */
  const tryWays = ([way, ...others]: Way[]) => {
    let isOpen = false;
    const onEnd = (failure: Failure) => {
      close();
      // A close code of PROTOCOL.md, or 1011: the server was reached, so another transport would not help.
      if (isOpen || failure.isFinal || /^(4...|1011)$/.test(`${failure.code}`) || !others.length) {
        prefersSse = prefersSse && isOpen;
        callbacks.onEnd(failure);
      } else tryWays(others);
    };
    const onOpen = (speaksV1: boolean) => {
      timer.stop();
      isOpen = true;
      if (way !== "sse") {
        prefersSse = false;
        hadSocket ||= speaksV1;
      }
      callbacks.onOpen(speaksV1, transport!);
    };
    timer.start(OPEN_WITHIN_MS, () => {
      // A proxy that drops one handshake without a response drops the next one, too. One that rejects handshakes
      // costs no time, so then WebSockets are still tried first.
      prefersSse = way === "v1";
      others = others.filter((other) => other !== "plain");
      onEnd({ reason: "connection timeout" });
    });
    try {
      transport = (way === "sse" ? eventStream : webSocket)(target, { ...callbacks, onEnd, onOpen }, way === "plain");
    } catch (error) {
      // The error message may contain the URL with its token. SyntaxError: the URL is invalid.
      const name = (error as Error | undefined)?.name;
      onEnd({ reason: `cannot connect (${name})`, isFinal: name === "SyntaxError" });
    }
  };

  return {
    /**
     * Open a connection.
     *
     * @param ready resolves when the target is known but for its token.
     * @param findTarget fetches the token.
     * @param failures consecutive failed attempts.
     */
    open: async (ready: unknown, findTarget: () => Promise<Target>, failures: number) => {
      close();
      const current = (attempt = {});
      timer.start(OPEN_WITHIN_MS, () => callbacks.onEnd({ reason: "token() timed out" }));
      await ready;
      if (current !== attempt) return; // closed, or replaced by a newer attempt
      const found = await findTarget().catch((error: Partial<Error> | undefined) => {
        if (current === attempt) callbacks.onEnd({ reason: `no token: ${error?.message ?? error}` });
      });
      if (!found || current !== attempt) return;
      target = found;
      tryWays(waysToConnect(failures));
    },
    /** Send a new token over the open connection. */
    authenticate: (token: string | undefined) => {
      if (token && token !== target.token) transport?.send(JSON.stringify({ action: "authenticate", token: (target.token = token) }));
    },
    send: (text: string) => transport?.send(text),
    close,
  };
}
