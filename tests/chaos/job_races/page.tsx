/** A page that follows jobs with `useJob`, each from another moment on, and lists them with `useJobs`. */
import { StrictMode, useEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";
import { RealtimeProvider, useJob, useJobs, type JobState } from "../../../browser/src/react.js";

type Seen = Pick<JobState, "status" | "text">;

declare global {
  var seen: Record<string, Seen>;
  var listed: Record<string, string>;
  var faults: string[];
  function follow(url: string, userId: string, delays: Record<string, number>): void;
}

Object.assign(globalThis, { seen: {}, listed: {}, faults: [] });

function Job({ id, delayMs }: { id: string; delayMs: number }) {
  const [isShown, setShown] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setShown(true), delayMs);
    return () => clearTimeout(timer);
  }, [delayMs]);
  return isShown && <Followed id={id} />;
}

function Followed({ id }: { id: string }) {
  const { status, text } = useJob(id);
  const ending = useRef<string>();
  useEffect(() => {
    if (ending.current && ending.current !== status) faults.push(`${id}: ${status} after ${ending.current}`);
    if (status === "success" || status === "error") ending.current = status;
    seen[id] = { status, text };
  });
  return null;
}

function List({ userId }: { userId: string }) {
  const { jobs } = useJobs({ userId, limit: 200 });
  useEffect(() => {
    listed = Object.fromEntries(jobs.map(({ requestId, runId, status }) => [requestId ?? runId, status]));
  });
  return null;
}

globalThis.follow = (url, userId, delays) =>
  createRoot(document.getElementById("root")!).render(
    <StrictMode>
      <RealtimeProvider url={url}>
        <List userId={userId} />
        {Object.entries(delays).map(([id, delayMs]) => (
          <Job key={id} id={id} delayMs={delayMs} />
        ))}
      </RealtimeProvider>
    </StrictMode>,
  );
