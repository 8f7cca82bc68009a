import { memo } from "react";
import { useJob, type JobRecord } from "@synap/realtime/react";
import { jobText, jobTitle } from "./words.js";

/** A job of the list. While it runs, it is followed: the list has no texts. */
export const JobCard = memo(function JobCard({ job, about }: { job: JobRecord; about: string | undefined }) {
  const isRunning = job.status === "running" || job.status === "retrying";
  const followed = useJob(isRunning ? job.requestId : null, { throttleMs: 50 });
  const { progress, label, error, result } = job;
  const status = isRunning && followed.status !== "idle" ? followed.status : STATUSES[job.status];
  const written = typeof result?.response === "string" ? result.response : followed.text;
  const title = jobTitle(job);
  const what = about ?? (typeof result?.title === "string" ? result.title : "");
  return (
    <li className="job" data-status={status}>
      <div className="line">
        <b>{title}</b> <span className="about">{what}</span>
        <span className="state">{jobText({ ...job, status })}</span>
      </div>
      {isRunning && <progress aria-label={`${title}: ${what}`} {...(progress === undefined ? {} : { value: progress })} />}
      {isRunning && label && <p className="hint">{label}</p>}
      {written && <p className="text">{written}</p>}
      {error && <p className="problem">{error}</p>}
      {typeof result?.fileUrl === "string" && (
        <p className="hint">
          <a href={result.fileUrl}>Open the file</a>
        </p>
      )}
    </li>
  );
});

const STATUSES = {
  running: "pending",
  retrying: "retrying",
  completed: "success",
  failed: "error",
  cancelled: "error",
} as const;
