/** What a hook keeps over all connections of its room, and shows. */
import type { State, Status } from "../state.js";

/** An `Event` with the cause of the error. */
export interface RealtimeErrorEvent extends Event {
  readonly message: string;
  /** A close code, or the HTTP status of a rejected request. */
  readonly code?: number;
  /** Whether a retry can succeed. */
  readonly retriable: boolean;
}

/** A value that components subscribe to. */
export type Store<Value> = ReturnType<typeof createStore<Value>>;

export function createStore<Value>(value: Value) {
  const listeners = new Set<() => void>();
  return {
    get: () => value,
    /** Change some members of the value. */
    set: (change: Partial<Value>) => {
      value = { ...value, ...change };
      for (const listener of listeners) listener();
    },
    subscribe: (listener: () => void) => {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
}

/**
 * Return an `Event` with the cause of an error, also where there is no `Event`; null: there is no error.
 *
 * @param last is kept until the next connection is open.
 */
export function errorEvent({ status, error }: State, last: RealtimeErrorEvent | null): RealtimeErrorEvent | null {
  if (!error) return status === "connecting" ? last : null;
  const { message, code, retriable } = error;
  const event = typeof Event === "undefined" ? { type: "error" } : new Event("error");
  return Object.assign(event, { message, code, retriable }) as RealtimeErrorEvent;
}

/** What the hooks of jobs show of the connection. */
export interface ConnectionState {
  /** `reconnecting`: the connection was lost, and the next attempt is scheduled. `closed`: also when a job is finished. */
  connection: Status;
  connectionError: RealtimeErrorEvent | null;
}
export function setConnection(store: Store<ConnectionState>, state: State = { status: "closed" }): void {
  store.set({ connection: state.status, connectionError: errorEvent(state, store.get().connectionError) });
}
