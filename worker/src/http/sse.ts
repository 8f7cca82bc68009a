/**
 * Server-Sent Events. See PROTOCOL.md, "Server-Sent Events".
 *
 * The Worker writes the stream, and subscribes to the room over a WebSocket. So the room can hibernate: a waiting
 * Worker costs nothing, but a waiting Durable Object does.
 */

import { CloseCode } from "../protocol/control";
import { HOLD, MORE } from "../rooms/stub";

/**
 * The interval of comment lines. Proxies close idle streams, and a write detects a disconnected client where the
 * runtime does not report it.
 */
const HEARTBEAT_MS = 10_000;
/** The delay after which a browser reconnects. */
const RETRY_MS = 1000;
const MAX_BACKLOG_BYTES = 1024 * 1024;
/** Above this backlog, the room joins the pieces of texts until half of it was read. */
const HOLD_BYTES = 256 * 1024;
const STALL_MS = 20_000;
/** The total backlog of the streams of an isolate, which has 128 MB. Above it, the largest is aborted. */
const MAX_BUFFERED_BYTES = 32 * 1024 * 1024;

/** An open stream, and its backlog in bytes. */
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
  "X-Accel-Buffering": "no", // for nginx and compatible proxies
};

/**
 * Return the messages of a room as an event stream, until one side closes it.
 *
 * @param disconnected aborts when the client disconnects.
 */
export function eventStream(room: WebSocket, disconnected: AbortSignal): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const queue: (Uint8Array | typeof MORE)[] = [encoder.encode(`retry: ${RETRY_MS}\n\n`)];
  let backlogBytes = 0;
  let isLive = false; // false during the replay, when the room sends a page only after the last one was read
  let isHeld = false; // the room was told that the client reads slowly
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
    else if (isLive && !isHeld && backlogBytes > HOLD_BYTES) {
      isHeld = true;
      room.send(HOLD);
    }
    wake();
  };
  const end = (code: number): void => {
    if (isEnded) return;
    isEnded = true;
    release(stream);
    clearInterval(beat);
    room.close(code);
    if (code === CloseCode.SLOW_CONSUMER) cut(); // a client that reads nothing would never receive a regular end
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
    put(formatEvent(data));
    if (data.startsWith('{"type":"synap.subscribed"')) {
      isLive = true;
      backlogBytes = 0; // replayed pages do not count, only what is published from now on
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
        controller.error(new Error("slow consumer"));
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
          if (isHeld && !isEnded && backlogBytes <= HOLD_BYTES / 2) {
            isHeld = false;
            room.send(MORE);
          }
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

/** Format a notification or a control frame as an event. */
function formatEvent(text: string): string {
  if (text.startsWith('{"type":"synap.')) {
    const { type, data } = JSON.parse(text) as { type: string; data: { cursor?: string } };
    const id = data.cursor === undefined ? "" : `id: ${data.cursor}\n`;
    return `event: ${type}\n${id}data: ${JSON.stringify(data)}\n\n`;
  }
  // The cursor is the last member, and contains no quote.
  const cursor = text.slice(text.lastIndexOf('"', text.length - 3) + 1, -2);
  return `id: ${cursor}\ndata: ${text}\n\n`;
}
