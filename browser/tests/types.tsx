// Uses that must compile; each line after @ts-expect-error must not. Never run.
import { subscribe, type NotificationMessage } from "../src/index.js";
import { RealtimeProvider, useJob, useJobs, useSynapRealtime, type JobState, type RealtimeErrorEvent } from "../src/react.js";

// ---- the original hook's usage, unchanged ----

interface Props {
  userId: string;
  requestId?: string;
}

export function Report({ userId, requestId }: Props) {
  const { lastMessage, isConnected, connect, disconnect, sendMessage, error } = useSynapRealtime({
    userId,
    requestId,
    realtimeUrl: "https://rooms.example",
    autoConnect: true,
    onMessage: (message) => {
      if (message.type === "note.creation.completed") console.log(message.data);
    },
    onError: (error: Event) => {
      console.error(error);
    },
    onConnect: () => console.log("connected"),
    onDisconnect: () => console.log("disconnected"),
  });
  if (lastMessage) {
    const data: Record<string, unknown> = lastMessage.data;
    const { type, requestId, status, timestamp } = lastMessage;
    console.log(data.anything, type.length, requestId?.length, status === "success", timestamp?.slice(0, 10));
  }
  return (
    <button disabled={isConnected} onClick={() => (isConnected ? disconnect() : connect())}>
      {error?.type} <a onClick={() => sendMessage("ping")} />
    </button>
  );
}

// ---- comparing the type narrows the data ----

export function show(message: NotificationMessage): string {
  switch (message.type) {
    case "note.creation.started":
      // @ts-expect-error: a member that is not declared is unknown
      message.data.title.length;
      return message.data.stallAfterS.toFixed(message.data.attempt);
    case "note.creation.completed":
      // @ts-expect-error: it is optional
      message.data.title.length;
      return message.data.truncated ? message.data.omitted.join() : message.data.title + message.data.fileUrl;
    case "conversation.response.generated":
      return message.data.truncated ? "" : message.data.response;
    case "task.creation.failed":
    case "task.creation.cancelled":
      return message.data.error;
    case "conversation.response.delta":
      return message.data.delta.repeat(message.data.index);
    // @ts-expect-error: no such type
    case "note.creation.complete":
      return "";
    default:
      return message.id ?? "";
  }
}

export function untold(message: NotificationMessage): void {
  // @ts-expect-error: its type was not compared
  message.data.title.length;
  // @ts-expect-error: a status is one of three
  void (message.status === "done");
}

subscribe("user_1", {
  onNotification: (notification) => {
    if (notification.type === "task.completion.completed" && !notification.data.truncated)
      notification.data.completedAt.slice(0, 10);
  },
  onStateChange: ({ status, error }) => {
    // @ts-expect-error: there is no such status
    void (status === "connected");
    void error?.code?.toFixed();
  },
});
subscribe("user_1", { token: "a" }).close();
subscribe("user_1", { token: () => null, persist: true, after: undefined });
subscribe("user_1", { token: async () => "a", persist: { getItem: async () => null, setItem: async () => {} } });
// @ts-expect-error: a token is not a number
subscribe("user_1", { token: 7 });
// @ts-expect-error: there is no such option
subscribe("user_1", { reconnect: true });

// ---- custom job types ----

interface ReportData {
  "report.creation.started": { runId: string; attempt: number };
  "report.creation.completed": { pages: number };
}

export function Own() {
  const { lastMessage, messages } = useSynapRealtime<ReportData>({
    userId: "1",
    onMessage: (message) => {
      if (message.type === "report.creation.completed") message.data.pages.toFixed();
      // @ts-expect-error: not of these job types
      if (message.type === "note.creation.completed") return;
    },
  });
  if (lastMessage?.type === "report.creation.started") lastMessage.data.runId.slice(1);
  // @ts-expect-error: the messages are read-only
  messages.push();
  return null;
}

// @ts-expect-error: userId is required
export const Nobody = () => useSynapRealtime({});

// ---- a job ----

export function Job({ requestId }: { requestId: string | null }) {
  const any: JobState = useJob(requestId);
  const pages: unknown = any.result?.pages;
  const { status, progress, label, attempt, result, error, text } = useJob<{ pages: number }>(requestId, { token: "a" });
  // @ts-expect-error: the result may be undefined
  result.pages;
  // @ts-expect-error: there is no such status
  if (status === "done") return null;
  return <progress value={progress} title={`${label} ${attempt} ${error} ${text.length} ${result?.pages.toFixed()} ${pages}`} />;
}

export const errorOf = (error: RealtimeErrorEvent): [Event, string, number | undefined, boolean] => [
  error, error.message, error.code, error.retriable,
];

// ---- what a component uses of it ----

export function Part({ userId }: { userId: string }) {
  const half: boolean = useJob("1", { select: ({ progress = 0 }) => progress >= 0.5, throttleMs: 100, enabled: true });
  const titles: string[] = useJobs({ userId, status: ["running", "failed"], select: ({ jobs }) => jobs.map(({ type }) => type) });
  const { jobs } = useJobs({ userId, status: "completed", type: "note.creation", limit: 5 });
  // @ts-expect-error: there is no such status
  useJobs({ userId, status: "success" });
  // @ts-expect-error: the list is read-only
  jobs.push();
  // @ts-expect-error: userId is required
  useJobs({});
  return <RealtimeProvider url="https://rooms.example" token={async () => "a"}>{`${half} ${titles} ${jobs[0]?.result?.title}`}</RealtimeProvider>;
}
