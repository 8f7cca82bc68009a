/** A page that follows a job with both hooks, and keeps all that they have shown. */
import { useEffect } from "react";
import { createRoot } from "react-dom/client";
import { useJob, useSynapRealtime, type RealtimeMessage, type UseJobReturn } from "../../browser/src/react.js";

declare global {
  var states: UseJobReturn[];
  var messages: RealtimeMessage[];
  var roomStates: string[];
  var isOver: boolean;
  function mintForJob(): Promise<string>;
  function mintForRoom(): Promise<string>;
  function follow(url: string, id: string): void;
}

Object.assign(globalThis, { states: [], messages: [], roomStates: [], isOver: false });

function Page({ url, id }: { url: string; id: string }) {
  const job = useJob(id, { url, token: () => mintForJob() });
  const { status } = useSynapRealtime({
    userId: "1",
    url,
    token: () => mintForRoom(),
    onMessage: (message) => messages.push(message),
  });
  useEffect(() => void states.push(job), [job]);
  useEffect(() => void roomStates.push(status), [status]);
  useEffect(() => {
    isOver = job.status === "success" && messages.some(({ status }) => status === "success");
  });
  return <p>{`${job.status} ${job.label ?? ""}`}</p>;
}

globalThis.follow = (url, id) => createRoot(document.getElementById("root")!).render(<Page url={url} id={id} />);
