/** The state of a subscription, as the application sees it. */

/** `reconnecting`: the next attempt is scheduled; `closed`: there will be none. */
export type Status = "connecting" | "open" | "reconnecting" | "closed";

export interface State {
  status: Status;
  /** The transport of the open connection. */
  transport?: "websocket" | "sse";
  /** Why there is no connection. */
  error?: RealtimeError;
  /** The number of the next consecutive attempt, and the milliseconds until it. */
  attempt?: number;
  delayMs?: number;
}

export class RealtimeError extends Error {
  override readonly name = "RealtimeError";
  constructor(
    message: string,
    /** A close code (PROTOCOL.md, "Close codes") or the HTTP status of a rejected request. */
    readonly code?: number,
    /** Whether a retry can succeed. */
    readonly retriable = true,
  ) {
    super(message);
  }
}

export interface Subscription {
  readonly room: string;
  readonly state: State;
  /** The position after the last notification. */
  readonly cursor: string | undefined;
  /** The `after` of a later subscription that must not miss anything; undefined before the first notification. */
  readonly resume: string | undefined;
  /** Send a text to the server. Does nothing over Server-Sent Events. */
  send(text: string): void;
  /** Connect now, also after the last attempt has failed. */
  reconnect(): void;
  /** Close the subscription. No callback is called afterwards. */
  close(): void;
}

/** Call a callback. If it throws, the error is reported globally, and the connection stays open. */
export function call<T>(callback: ((value: T) => void) | undefined, value: T): void {
  try {
    callback?.(value);
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}
