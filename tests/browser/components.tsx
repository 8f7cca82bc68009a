/** Components with the hooks, and what they were told and have shown. */
import { StrictMode, useEffect } from "react";
import { createRoot, type Root } from "react-dom/client";
import {
  RealtimeProvider,
  useJob,
  useJobs,
  useSynapRealtime,
  type JobState,
  type RealtimeOptions,
  type UseJobsReturn,
  type UseSynapRealtimeReturn,
} from "../../browser/src/react.js";
import { changed } from "./until.js";

interface Props {
  options?: RealtimeOptions;
  /** Marks what the callbacks of this render say. */
  version?: number;
  ids?: string[];
  url?: string;
  token?: string;
}

declare global {
  var seen: { calls: string[]; hook?: UseSynapRealtimeReturn; jobs: Record<string, JobState>; list?: UseJobsReturn };
  /** Render, or render anew with other properties. */
  function show(name: keyof typeof components, props: Props, isStrict?: boolean): void;
  function leave(): void;
}

globalThis.seen = { calls: [], jobs: {} };

const tell = (call: string) => {
  seen.calls.push(call);
  changed();
};

function Listener({ options, version = 1 }: Props) {
  const hook = useSynapRealtime({
    ...(options as RealtimeOptions),
    // New functions at each render, as most components have them.
    onMessage: ({ id, type }) => tell(`message ${id ?? type} to ${version}`),
    onConnect: () => tell("connect"),
    onDisconnect: () => tell("disconnect"),
    onError: ({ type, message }) => tell(`${type}: ${message}`),
  });
  useEffect(() => {
    seen.hook = hook;
    changed();
  });
  return <p>{hook.messages.length}</p>;
}

/** The report's own words: "Example Usage". */
function Report() {
  const { lastMessage, isConnected } = useSynapRealtime({
    userId: 'user-123',
    requestId: 'request-456', // Optional
    onMessage: (message) => {
      if (message.type === 'note.creation.completed') {
        console.log('Note created!', message.data);
      }
    },
  });
  return <Shown isConnected={isConnected} title={lastMessage?.data.title} />;
}

/** All members that the report's hook has. */
function ReportInFull({ url }: Props) {
  const { lastMessage, isConnected, connect, disconnect, sendMessage, error } = useSynapRealtime({
    userId: "user-123",
    requestId: "request-456",
    realtimeUrl: url,
    autoConnect: false,
    onMessage: (message) => tell(`message ${message.type} ${message.requestId} ${message.status}`),
    onError: (event: Event) => tell(event.type),
    onConnect: () => tell("connect"),
    onDisconnect: () => tell("disconnect"),
  });
  return (
    <>
      <Shown isConnected={isConnected} title={lastMessage?.data.title} />
      <button onClick={connect}>connect</button>
      <button onClick={disconnect}>disconnect</button>
      <button onClick={() => sendMessage("hello")}>send</button>
      {error && <p role="alert">{error.type}</p>}
    </>
  );
}

function Shown({ isConnected, title }: { isConnected: boolean; title: unknown }) {
  useEffect(changed);
  return (
    <>
      <p role="status">{isConnected ? "connected" : "away"}</p>
      <h1>{String(title ?? "nothing yet")}</h1>
    </>
  );
}

function Jobs({ ids = [], url, token }: Props) {
  return ids.map((id) => <Job key={id} id={id} url={url} token={token} />);
}

function Job({ id, ...options }: { id: string; url?: string; token?: string }) {
  const job = useJob<{ number: number }>(id, options);
  useEffect(() => {
    seen.jobs[id] = job;
    changed();
  });
  return <p>{job.text}</p>;
}

/** All that a page may show of one user: the room, the list, and many jobs. */
function Dashboard({ ids, url, token }: Props) {
  return (
    <RealtimeProvider url={url} token={async () => token}>
      <Listener options={{ userId: "1" }} />
      <List />
      <Jobs ids={ids} />
    </RealtimeProvider>
  );
}

function List() {
  const list = useJobs({ userId: "1" });
  useEffect(() => {
    seen.list = list;
    changed();
  });
  return <p>{list.jobs.length}</p>;
}

const components = { Listener, Report, ReportInFull, Jobs, Dashboard };
let root: Root | undefined;

globalThis.show = (name, props, isStrict = false) => {
  const Component = components[name];
  const shown = <Component {...props} />;
  root ??= createRoot(document.getElementById("root")!);
  root.render(isStrict ? <StrictMode>{shown}</StrictMode> : shown);
};
globalThis.leave = () => {
  root?.unmount();
  root = undefined;
};
