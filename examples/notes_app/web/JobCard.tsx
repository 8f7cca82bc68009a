import { useJob } from "@synap/realtime/react";
import { jobText } from "./words.js";

/** A job that this user has started. */
export interface Asked {
  key: string;
  title: string;
  about: string;
  /** Missing if the request failed: then `problem` holds the reason. */
  requestId?: string;
  problem?: string;
}

export function JobCard({ asked, realtimeUrl }: { asked: Asked; realtimeUrl: string }) {
  const followed = useJob(asked.requestId, { url: realtimeUrl });
  const job = asked.problem ? { ...followed, status: "error" as const, error: asked.problem } : followed;
  const { status, progress, label, error, result, text } = job;
  const isMoving = status === "idle" || status === "pending" || status === "retrying";
  const written = typeof result?.response === "string" ? result.response : text;
  const name = `${asked.title}: ${asked.about}`;
  return (
    <li className="job" data-status={status}>
      <div className="line">
        <b>{asked.title}</b> <span className="about">{asked.about}</span>
        <span className="state">{jobText(job)}</span>
      </div>
      {isMoving && <progress aria-label={name} {...(progress === undefined ? {} : { value: progress })} />}
      {isMoving && label && <p className="hint">{label}</p>}
      {written && <p className="text">{written}</p>}
      {error && <p className="problem">{error}</p>}
      {typeof result?.fileUrl === "string" && (
        <p className="hint">
          <a href={result.fileUrl}>Open the file</a>
        </p>
      )}
    </li>
  );
}
