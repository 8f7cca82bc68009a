// The payload types of synap-realtime notifications. Generated; regenerate with:
//   synap-realtime generate-types --out FILE

/** `….cancelled`: the run was cancelled. */
export interface JobCancelled {
  /** An error message for the user. */
  error: string;
  /** The same on every attempt. */
  runId: string;
}

/** `….delta`: a part of a text that the job is generating. */
export interface JobDelta {
  /** The same on every attempt. */
  runId: string;
  /** Counted from 1. */
  attempt: number;
  /** The maximum number of attempts; absent if unknown. */
  maxAttempts?: number;
  /** Counts the parts. 0 restarts the text. */
  index: number;
  /** The next part of the text. */
  delta: string;
  /** Code points of the text before this part, if it is not folded (fold.offset). */
  offset?: number;
}

/** `….failed`: the run failed, and no attempt will follow. */
export interface JobFailed {
  /** An error message for the user. */
  error: string;
  /** The same on every attempt. */
  runId: string;
}

/** `….progress`: the progress of the run, or that it is suspended. */
export interface JobProgress {
  /** The same on every attempt. */
  runId: string;
  /** Counted from 1. */
  attempt: number;
  /** The maximum number of attempts; absent if unknown. */
  maxAttempts?: number;
  /** From 0 to 1. */
  progress?: number;
  /** The current activity, written for the user. */
  label?: string;
  /** As in started; absent if the run may be suspended for any time. */
  stallAfterS?: number;
}

/** `….retrying`: an attempt failed, and `attempt` is the number of the next one. */
export interface JobRetrying {
  /** The same on every attempt. */
  runId: string;
  /** Counted from 1. */
  attempt: number;
  /** The maximum number of attempts; absent if unknown. */
  maxAttempts?: number;
  /** An error message for the user. */
  error: string;
  /** Seconds until the next attempt, if known. */
  retryInS?: number;
  /** Seconds without a notification after which the run counts as stalled. */
  stallAfterS: number;
}

/** `….started`: the run has started. */
export interface JobStarted {
  /** The same on every attempt. */
  runId: string;
  /** Counted from 1. */
  attempt: number;
  /** The maximum number of attempts; absent if unknown. */
  maxAttempts?: number;
  /** Seconds without a notification after which the run counts as stalled. */
  stallAfterS: number;
}

/** `note.creation.completed`. */
export interface NoteCreated {
  entityId: string;
  title: string;
  fileUrl: string;
  filePath: string;
}

/** `project.creation.completed`. */
export interface ProjectCreated {
  entityId: string;
  title: string;
  description?: string;
  /** ISO 8601, a date or a time. */
  startDate?: string;
  /** ISO 8601, a date or a time. */
  endDate?: string;
}

/** `conversation.response.generated`. */
export interface ResponseGenerated {
  conversationId: string;
  threadId: string;
  userMessageId: string;
  assistantMessageId: string;
  response: string;
  /** True if no reply was available; `response` is the fallback. */
  fallback: boolean;
}

/** `task.completion.completed`. */
export interface TaskCompleted {
  entityId: string;
  status: string;
  /** RFC 3339, in UTC. */
  completedAt: string;
}

/** `task.creation.completed`. */
export interface TaskCreated {
  entityId: string;
  title: string;
  status: string;
  priority: string;
  /** ISO 8601, a date or a time. */
  dueDate?: string;
  projectId?: string;
}

/** The markers in a result that was truncated to fit into a notification. */
export interface Truncated {
  truncated: true;
  /** The members that were left out. */
  omitted: string[];
}

/** A job's result: complete, unless `truncated` is set. */
export type MaybeTruncated<T> = (T & { truncated?: undefined }) | (Partial<T> & Truncated);

/** The type of `data` for each notification `type`. */
export interface NotificationData {
  "note.creation.started": JobStarted;
  "note.creation.progress": JobProgress;
  "note.creation.delta": JobDelta;
  "note.creation.retrying": JobRetrying;
  "note.creation.completed": MaybeTruncated<NoteCreated>;
  "note.creation.failed": JobFailed;
  "note.creation.cancelled": JobCancelled;
  "task.creation.started": JobStarted;
  "task.creation.progress": JobProgress;
  "task.creation.delta": JobDelta;
  "task.creation.retrying": JobRetrying;
  "task.creation.completed": MaybeTruncated<TaskCreated>;
  "task.creation.failed": JobFailed;
  "task.creation.cancelled": JobCancelled;
  "task.completion.started": JobStarted;
  "task.completion.progress": JobProgress;
  "task.completion.delta": JobDelta;
  "task.completion.retrying": JobRetrying;
  "task.completion.completed": MaybeTruncated<TaskCompleted>;
  "task.completion.failed": JobFailed;
  "task.completion.cancelled": JobCancelled;
  "project.creation.started": JobStarted;
  "project.creation.progress": JobProgress;
  "project.creation.delta": JobDelta;
  "project.creation.retrying": JobRetrying;
  "project.creation.completed": MaybeTruncated<ProjectCreated>;
  "project.creation.failed": JobFailed;
  "project.creation.cancelled": JobCancelled;
  "conversation.message.started": JobStarted;
  "conversation.message.progress": JobProgress;
  "conversation.response.delta": JobDelta;
  "conversation.message.retrying": JobRetrying;
  "conversation.response.generated": MaybeTruncated<ResponseGenerated>;
  "conversation.message.failed": JobFailed;
  "conversation.message.cancelled": JobCancelled;
}

/** The known notification types; a client may receive others. */
export type NotificationType = keyof NotificationData;

/**
 * A delivered notification. Checking its `type` narrows its `data`.
 * `SynapNotification<"note.creation.failed">` is of that type only.
 */
export type SynapNotification<Type extends NotificationType = NotificationType> = {
  [T in Type]: {
    type: T;
    data: NotificationData[T];
    /** Identifies the notification. Repeats have the same id. */
    id: string;
    /** The request that this notification belongs to. */
    requestId?: string;
    /** The state of the job. Progress and retries are pending. */
    status?: "pending" | "success" | "error";
    /**
     * RFC 3339, in UTC with milliseconds.
     * @format date-time
     */
    timestamp: string;
    /** What the log folds the notification into. See PROTOCOL.md, Folding. */
    fold?: {
      key: string;
      mode: "append" | "replace";
      attempt?: number;
      /** How many code points of the text come before this piece. */
      offset?: number;
      final?: boolean;
    };
    /** The event of a job's run. See PROTOCOL.md, Job state. */
    job?: {
      event: "started" | "progress" | "retrying" | "completed" | "failed" | "cancelled";
      /** The name of the job type. */
      name: string;
      runId: string;
      userId?: string;
      attempt?: number;
    };
    /** The room that it was published to. */
    room: string;
    /** Its position in the room. Resume after it. */
    cursor: string;
  };
}[Type];
