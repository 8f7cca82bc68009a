/** The tasks that are still to do, from the jobs that created and completed them. */
import type { JobRecord } from "@synap/realtime/react";

export interface OpenTask {
  id: string;
  title: string;
}

export function openTasks(jobs: readonly JobRecord[]): OpenTask[] {
  const done = new Set<unknown>();
  const created: OpenTask[] = [];
  for (const { type, status, result } of jobs) {
    if (status !== "completed" || typeof result?.entityId !== "string") continue;
    if (type === "task.completion") done.add(result.entityId);
    if (type === "task.creation") created.push({ id: result.entityId, title: String(result.title ?? "a task") });
  }
  return created.filter(({ id }) => !done.has(id));
}
