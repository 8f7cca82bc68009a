import { useCallback, useState } from "react";
import { useSynapRealtime } from "@synap/realtime/react";
import { Away } from "./Away.js";
import { Forms, type OpenTask } from "./Forms.js";
import { JobCard, type Asked } from "./JobCard.js";
import { useKept } from "./kept.js";
import { Link } from "./Link.js";
import { Toasts, type Toast } from "./Toasts.js";
import { isTerminal, notificationText, type AppData, type AppMessage } from "./words.js";

const loadedAt = Date.now();
const SHOWN = 20;

export function App({ realtimeUrl }: { realtimeUrl: string }) {
  // A real app takes the user from its session. Here each browser is a separate user.
  const [user] = useKept("notes-user", () => `u-${crypto.randomUUID().slice(0, 8)}`);
  const [asked, setAsked] = useKept<Asked[]>("notes-asked", () => []);
  const [tasks, setTasks] = useKept<OpenTask[]>("notes-tasks", () => []);
  const [away, setAway] = useState<AppMessage[]>([]);
  const [toasts, setToasts] = useState<Toast[]>([]);

  const handleMessage = (message: AppMessage) => {
    if (message.type === "task.creation.completed") {
      const { entityId, title } = message.data;
      if (entityId) setTasks((all) => [{ id: entityId, title: title ?? "a task" }, ...all]);
    } else if (message.type === "task.completion.completed") {
      const { entityId } = message.data;
      setTasks((all) => all.filter(({ id }) => id !== entityId));
    }
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
    url: realtimeUrl,
    maxReconnects: Infinity,
    onMessage: handleMessage,
  });

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
          tasks={tasks}
          onAsked={(one) => setAsked((all) => [one, ...all].slice(0, SHOWN))}
        />
        <div>
          <Away messages={away} onRead={() => setAway([])} />
          <section aria-labelledby="jobs">
            <h2 id="jobs">Your jobs</h2>
            {asked.length === 0 && <p className="hint">No jobs yet. Start one.</p>}
            <ol className="jobs">
              {asked.map((one) => (
                <JobCard key={one.key} asked={one} realtimeUrl={realtimeUrl} />
              ))}
            </ol>
            {asked.length > 0 && (
              <button type="button" className="quiet" onClick={() => setAsked(() => [])}>
                Clear the list
              </button>
            )}
          </section>
        </div>
      </main>
      <Toasts toasts={toasts} onGone={dismiss} />
    </>
  );
}
