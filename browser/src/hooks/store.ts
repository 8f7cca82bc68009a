/** What a hook keeps over all connections of its room, and shows. */
import { Position } from "../position.js";
import type { RealtimeError, Subscription } from "../state.js";

/** An `Event` with the cause of the error. */
export interface RealtimeErrorEvent extends Event {
  readonly message: string;
  /** A close code, or the HTTP status of a rejected request. */
  readonly code?: number;
  /** Whether a retry can succeed. */
  readonly retriable: boolean;
}

/** A value that components subscribe to. */
export class Store<Value> {
  readonly #listeners = new Set<() => void>();
  constructor(public value: Value) {}
  readonly get = () => this.value;
  readonly subscribe = (listener: () => void) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };
  set(value: Value): void {
    this.value = value;
    for (const listener of this.#listeners) listener();
  }
}

/** The state of a hook's room, over all of its connections. */
export class RoomStore<Value> extends Store<Value> {
  readonly #position = new Position(undefined);
  #resume: string | undefined;
  #after: string | undefined;

  /** Return the start of the next connection: the position of the last one, unless `after` has changed. */
  start(after: string | undefined): string | undefined {
    if (this.#after !== after) this.#resume = undefined;
    this.#after = after;
    return this.#resume ?? after;
  }
  /** Remember the position of a connection that has ended. */
  end({ resume }: Subscription): void {
    this.#resume = resume ?? this.#resume;
  }
  isNew = (notification: { id?: string }) => this.#position.isNew(notification as never);
}

/** Return an `Event` with the cause of an error, also where there is no `Event`; null: there is no error. */
export function errorEvent(error: RealtimeError | undefined): RealtimeErrorEvent | null {
  if (!error) return null;
  const { message, code, retriable } = error;
  const event = typeof Event === "undefined" ? { type: "error" } : new Event("error");
  return Object.assign(event, { message, code, retriable }) as RealtimeErrorEvent;
}
