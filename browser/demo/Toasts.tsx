import { useEffect, useState } from "react";

export interface Toast {
  id: string;
  text: string;
  isBad: boolean;
}

const STAYS_MS = 6000;

/** Results of jobs. Both live regions are always rendered, because screen readers announce only changes to existing ones. */
export function Toasts({ toasts, onGone }: { toasts: Toast[]; onGone: (id: string) => void }) {
  const shown = (isBad: boolean) =>
    toasts.filter((toast) => toast.isBad === isBad).map((toast) => <One key={toast.id} toast={toast} onGone={onGone} />);
  return (
    <div className="toasts">
      <div role="status">{shown(false)}</div>
      <div role="alert">{shown(true)}</div>
    </div>
  );
}

function One({ toast, onGone }: { toast: Toast; onGone: (id: string) => void }) {
  const [isHeld, setHeld] = useState(false); // kept while hovered or focused
  useEffect(() => {
    if (isHeld) return;
    const timer = setTimeout(() => onGone(toast.id), STAYS_MS);
    return () => clearTimeout(timer);
  }, [isHeld, onGone, toast.id]);
  return (
    <div
      className="toast"
      data-bad={toast.isBad}
      onPointerEnter={() => setHeld(true)}
      onPointerLeave={() => setHeld(false)}
      onFocus={() => setHeld(true)}
      onBlur={() => setHeld(false)}
    >
      <p>{toast.text}</p>
      <button type="button" aria-label={`Dismiss: ${toast.text}`} onClick={() => onGone(toast.id)}>
        ×
      </button>
    </div>
  );
}
