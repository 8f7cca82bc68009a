/** The response of `GET …/history`. See PROTOCOL.md, "HTTP". */

import { cursorText, furthest, type Cursor } from "../protocol/cursor";
import type { Log } from "../stores/log";

/** The response ends with the notification that reaches it. */
const MAX_HISTORY_BYTES = 1024 * 1024;

/** Return up to `limit` notifications after a position, as JSON. */
export function readHistory(log: Log, after: Cursor | undefined, limit: number): string {
  let position = after ?? log.earliest();
  const head = log.head();
  const texts: string[] = [];
  let [size, recovered, more] = [0, true, true];
  while (more && texts.length < limit && size < MAX_HISTORY_BYTES) {
    const page = log.read(position, limit - texts.length);
    if (!page.recovered) [recovered, position] = [false, log.earliest()];
    more = page.more;
    for (const entry of page.entries) {
      if (size >= MAX_HISTORY_BYTES) {
        more = true;
        break;
      }
      texts.push(entry.text);
      size += entry.bytes;
      position = entry.cursor;
    }
  }
  // Everything up to the head was read. An empty room has a position, too.
  if (!more) position = furthest(position, head);
  const envelope = JSON.stringify({ room: log.room, cursor: cursorText(position), recovered, more });
  return `${envelope.slice(0, -1)},"notifications":[${texts.join(",")}]}`;
}
