/** A request of this page whose job has not begun yet, or that failed. */
export interface Request {
  key: string;
  title: string;
  about: string;
  /** Missing if the request failed: then `problem` holds the reason. */
  requestId?: string;
  problem?: string;
}

export function Waiting({ request: { title, about, problem } }: { request: Request }) {
  return (
    <li className="job" data-status={problem ? "error" : "pending"}>
      <div className="line">
        <b>{title}</b> <span className="about">{about}</span>
        <span className="state">{problem ? "failed" : "queued"}</span>
      </div>
      {problem ? <p className="problem">{problem}</p> : <progress aria-label={`${title}: ${about}`} />}
    </li>
  );
}
