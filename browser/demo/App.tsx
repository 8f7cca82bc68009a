import { useCallback, useState } from "react";
import { RealtimeProvider, useJobs, useSynapRealtime } from "@synap/realtime/react";
import { Away } from "./Away.js";
import { Forms } from "./Forms.js";
import { JobCard } from "./JobCard.js";
import { useKept } from "./kept.js";
import { Link } from "./Link.js";
import { openTasks } from "./tasks.js";
import { Toasts, type Toast } from "./Toasts.js";
import { Waiting, type Request } from "./Waiting.js";
import { isTerminal, notificationText, type AppData, type AppMessage } from "./words.js";

const loadedAt = Date.now();
const SHOWN = 20;

export function App({ realtimeUrl }: { realtimeUrl: string }) {
  return (
    <RealtimeProvider url={realtimeUrl}>
      <Page />
    </RealtimeProvider>
  );
}

function Page() {
  // A real app takes the user from its session. Here each browser is a separate user.
  const [user] = useKept("notes-user", () => `u-${crypto.randomUUID().slice(0, 8)}`);
  const [requests, setRequests] = useState<Request[]>([]); // of this page, newest first
  const [away, setAway] = useState<AppMessage[]>([]);
  const [toasts, setToasts] = useState<Toast[]>([]);

  const handleMessage = (message: AppMessage) => {
    if (!isTerminal(message)) return;
    const wasAway = document.hidden || Date.parse(message.timestamp ?? "") < loadedAt;
    if (wasAway) setAway((all) => [message, ...all].slice(0, SHOWN));
    else {
      const toast = { id: message.id ?? crypto.randomUUID(), text: notificationText(message), isBad: message.status === "error" };
      setToasts((all) => [...all, toast].slice(-4));
    }
  };
  const dismiss = useCallback((id: string) => setToasts((all) => all.filter((toast) => toast.id !== id)), []);

  const { status, error, connect } = useSynapRealtime<AppData>({
    userId: user,
    maxReconnects: Infinity,
    onMessage: handleMessage,
  });
  // The list is the server's: it is the same in each tab, and after a reload or a restart.
  const { jobs, isLoaded } = useJobs({ userId: user, limit: SHOWN });
  const known = new Set(jobs.map((job) => job.requestId));
  const about = new Map(requests.map((request) => [request.requestId, request.about]));
  const waiting = requests.filter(({ requestId }) => !requestId || !known.has(requestId));

  return (
    <>
      <header>
        <h1>notes_app</h1>
        <p>Every click starts a background job. Its progress appears here in real time.</p>
        <Link status={status} error={error} connect={connect} />
      </header>
      <main>
        <Forms
          user={user}
          tasks={openTasks(jobs)}
          onRequest={(request) => setRequests((all) => [request, ...all].slice(0, SHOWN))}
        />
        <div>
          <Away messages={away} onRead={() => setAway([])} />
          <section aria-labelledby="jobs">
            <h2 id="jobs">Your jobs</h2>
            {isLoaded && jobs.length + waiting.length === 0 && <p className="hint">No jobs yet. Start one.</p>}
            <ol className="jobs">
              {waiting.map((request) => (
                <Waiting key={request.key} request={request} />
              ))}
              {jobs.map((job) => (
                <JobCard key={job.requestId ?? job.runId} job={job} about={about.get(job.requestId)} />
              ))}
            </ol>
          </section>
        </div>
      </main>
      <Toasts toasts={toasts} onGone={dismiss} />
    </>
  );
}
