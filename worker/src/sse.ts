/**
 * Server-Sent Events. See PROTOCOL.md, "Server-Sent Events".
 *
 * The Worker holds the stream and listens to the room over a WebSocket, so that the room can sleep:
 * a Worker that waits costs nothing, an object that waits does.
 */

import { CloseCode } from "./protocol/control";
import { MORE } from "./room";

/**
 * An event stream carries a comment line so often: proxies cut what is silent for longer, and a client
 * that has gone is found out by it, where the runtime does not tell.
 */
const HEARTBEAT_MS = 10_000;
/** When a browser comes back after a stream has ended. */
const RETRY_MS = 1000;
const MAX_BACKLOG_BYTES = 1024 * 1024;
const STALL_MS = 20_000;
/** So much may wait in all streams of an isolate, which has 128 MB: beyond it the largest is cut. */
const MAX_BUFFERED_BYTES = 32 * 1024 * 1024;

/** A stream that has not ended, and the bytes that wait in it. */
interface OpenStream {
  bytes: number;
  cut(): void;
}

const openStreams = new Set<OpenStream>();
let bufferedBytes = 0;

function addBuffered(stream: OpenStream, bytes: number): void {
  stream.bytes += bytes;
  bufferedBytes += bytes;
  while (bufferedBytes > MAX_BUFFERED_BYTES) {
    const largest = [...openStreams].reduce((one, other) => (other.bytes > one.bytes ? other : one));
    largest.cut();
  }
}

function release(stream: OpenStream): void {
  openStreams.delete(stream);
  bufferedBytes -= stream.bytes;
  stream.bytes = 0;
}

export const EVENT_STREAM_HEADERS = {
  "Content-Type": "text/event-stream; charset=utf-8",
  "Cache-Control": "no-store, no-transform",
  "X-Accel-Buffering": "no", // nginx, and others that learned it from nginx
};

/**
 * What the room says, as an event stream, until one side ends it.
 *
 * @param disconnected aborts when the client has gone.
 */
export function eventStream(room: WebSocket, disconnected: AbortSignal): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const queue: (Uint8Array | typeof MORE)[] = [encoder.encode(`retry: ${RETRY_MS}\n\n`)];
  let backlogBytes = 0;
  let isLive = false; // until then the room sends a page only when the last one was taken
  let isEnded = false;
  let takenAt = Date.now();
  let wake: () => void = () => undefined;
  let cut: () => void = () => undefined;
  const stream: OpenStream = { bytes: 0, cut: () => end(CloseCode.SLOW_CONSUMER) };
  openStreams.add(stream);

  const put = (text: string): void => {
    const chunk = encoder.encode(text);
    queue.push(chunk);
    backlogBytes += chunk.length;
    addBuffered(stream, chunk.length);
    if (isLive && backlogBytes > MAX_BACKLOG_BYTES) end(CloseCode.SLOW_CONSUMER);
    wake();
  };
  const end = (code: number): void => {
    if (isEnded) return;
    isEnded = true;
    release(stream);
    clearInterval(beat);
    room.close(code);
    if (code === CloseCode.SLOW_CONSUMER) cut(); // who reads nothing would never come to the end
    wake();
  };
  const beat = setInterval(() => {
    if (queue.length === 0) put(":\n\n");
    else if (Date.now() - takenAt > STALL_MS) end(CloseCode.SLOW_CONSUMER);
  }, HEARTBEAT_MS);
  room.addEventListener("message", ({ data }) => {
    if (typeof data !== "string" || isEnded) return;
    if (data === MORE) {
      queue.push(MORE);
      wake();
      return;
    }
    put(eventOf(data));
    if (data.startsWith('{"type":"synap.subscribed"')) {
      isLive = true;
      backlogBytes = 0; // of what comes live; what was replayed the client has asked for
    }
  });
  room.addEventListener("close", () => end(1000));
  room.addEventListener("error", () => end(1000));
  disconnected.addEventListener("abort", () => end(1000));
  room.accept();

  return new ReadableStream<Uint8Array>({
    start(controller) {
      cut = () => {
        queue.length = 0;
        controller.error(new Error("the client is too slow"));
      };
    },
    async pull(controller) {
      takenAt = Date.now();
      for (;;) {
        const next = queue.shift();
        if (next === MORE) {
          if (!isEnded) room.send(MORE);
        } else if (next !== undefined) {
          backlogBytes = Math.max(0, backlogBytes - next.length);
          if (!isEnded) addBuffered(stream, -Math.min(next.length, stream.bytes)); // "retry:" was not counted
          controller.enqueue(next);
          return;
        } else if (isEnded) {
          controller.close();
          return;
        } else {
          await new Promise<void>((resolve) => (wake = resolve));
        }
      }
    },
    cancel() {
      end(1000);
    },
  });
}

/** A notification, or a control frame, as an event. */
function eventOf(text: string): string {
  if (text.startsWith('{"type":"synap.')) {
    const { type, data } = JSON.parse(text) as { type: string; data: { cursor?: string } };
    const id = data.cursor === undefined ? "" : `id: ${data.cursor}\n`;
    return `event: ${type}\n${id}data: ${JSON.stringify(data)}\n\n`;
  }
  // The cursor is the last member, and holds no quote.
  const cursor = text.slice(text.lastIndexOf('"', text.length - 3) + 1, -2);
  return `id: ${cursor}\ndata: ${text}\n\n`;
}
