/** Events of the page, or of the app. */

/**
 * Observe the page.
 *
 * @param onWake the network is back, or the page is visible again. `isRestored`: from the back/forward cache, so
 *   its connections are gone.
 * @param onHide the page may be closed without another event.
 * @returns a function that stops it.
 */
export function observePage(onWake: (isRestored?: boolean) => void, onHide: () => void): () => void {
  const onOnline = () => onWake();
  const onVisible = () => (document.visibilityState === "visible" ? onWake() : onHide());
  const onShown = ({ persisted }: { persisted?: boolean }) => onWake(persisted);
  const events: [EventTarget | undefined, string, (event: Event) => void][] = [
    [globalThis.window, "online", onOnline],
    [globalThis.window, "pageshow", onShown as () => void],
    [globalThis.window, "pagehide", onHide],
    [globalThis.document, "visibilitychange", onVisible],
  ];
  // The window of React Native has no addEventListener.
  for (const [target, name, listener] of events) target?.addEventListener?.(name, listener);
  return () => {
    for (const [target, name, listener] of events) target?.removeEventListener?.(name, listener);
  };
}
