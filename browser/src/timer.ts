/** A timer of one purpose. */
export function createTimer() {
  let handle: ReturnType<typeof setTimeout> | undefined;
  const stop = () => {
    clearTimeout(handle);
    handle = undefined;
  };
  /** Start, or start again. */
  const start = (ms: number, then: () => void) => {
    stop();
    handle = setTimeout(() => {
      handle = undefined;
      then();
    }, ms);
  };
  /** Start unless it is running. */
  const ensure: typeof start = (ms, then) => void (handle || start(ms, then));
  return { start, ensure, stop };
}
