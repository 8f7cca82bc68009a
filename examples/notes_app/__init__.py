"""The whole system in one small app: notes, tasks, projects and conversations, each by a job."""
