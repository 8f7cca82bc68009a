import { useEffect, useState } from "react";
import type { RealtimeErrorEvent } from "@synap/realtime/react";

interface Props {
  status: "connecting" | "open" | "reconnecting" | "closed";
  error: RealtimeErrorEvent | null;
  connect: () => void;
}

/** The state of the realtime connection. */
export function Link({ status, error, connect }: Props) {
  // Do not report interruptions of less than a second.
  const [isQuiet, setQuiet] = useState(true);
  useEffect(() => {
    setQuiet(true);
    const timer = setTimeout(() => setQuiet(false), 1000);
    return () => clearTimeout(timer);
  }, [status === "open"]);
  const isOpen = status === "open" || (isQuiet && status !== "closed");
  const words = isOpen ? "live" : status === "closed" ? "not connected" : "reconnecting …";
  return (
    <div className="link" data-open={isOpen}>
      <span role="status" title={error?.message}>
        {words}
      </span>
      {!isOpen && (
        <button type="button" onClick={connect}>
          Try now
        </button>
      )}
    </div>
  );
}
