/** The pings and acknowledgements of one open connection. See PROTOCOL.md, "WebSocket" and "Clients". */
import { createTimer } from "./timer.js";
import type { Transport } from "./transports.js";

const PING_EVERY_MS = 30_000;
const PONG_WITHIN_MS = 10_000;
/** The page is visible again, or the network is back. */
const PONG_WITHIN_MS_OF_WAKING = 5_000;
const ACK_EVERY_MS = 500;

export type Keepalive = ReturnType<typeof createKeepalive>;

/** @param onLost called when the server does not answer a ping. */
export function createKeepalive({ kind, send }: Transport, acknowledges: boolean, onLost: () => void) {
  const pingTimer = createTimer();
  const pongTimer = createTimer();
  const ackTimer = createTimer();
  // A stream cannot send a ping, but receives a comment line every 15 s.
  const isStream = kind === "sse";
  let pingedAt = 0;
  /** The cursors of the rooms. On a connection with one room, it has no name. */
  const received = new Map<string | undefined, string | undefined>();
  const acknowledged: typeof received = new Map();

  /** Send a ping. Without a pong within this time, the connection is lost. */
  const ping = (withinMs = PONG_WITHIN_MS) => {
    send("ping");
    pingedAt = Date.now();
    pingTimer.start(PING_EVERY_MS, ping);
    pongTimer.ensure(isStream ? PING_EVERY_MS : withinMs, () => {
      // In a frozen tab the timer fires late, before the messages that arrived meanwhile are read.
      if (Date.now() - pingedAt > 2 * PING_EVERY_MS) ping();
      else onLost();
    });
  };
  const flush = () => {
    for (const [room, cursor] of acknowledges ? received : []) {
      if (cursor === acknowledged.get(room)) continue;
      acknowledged.set(room, cursor);
      send(JSON.stringify({ action: "ack", room, cursor }));
    }
  };

  if (isStream) ping();
  else pingTimer.start(PING_EVERY_MS, ping);
  return {
    /** Check the connection. The subscriptions of a page do so together: one ping is enough. */
    wake: () => pingedAt === Date.now() || ping(PONG_WITHIN_MS_OF_WAKING),
    pong: () => {
      pongTimer.stop();
      if (isStream) ping();
    },
    /** Acknowledge everything up to a cursor soon. */
    acknowledge: (cursor: string | undefined, room?: string) => {
      received.set(room, cursor);
      ackTimer.ensure(ACK_EVERY_MS, flush);
    },
    flush,
    /** Send the pending acknowledgements, and stop. */
    stop: () => {
      flush();
      pingTimer.stop();
      pongTimer.stop();
      ackTimer.stop();
    },
  };
}
