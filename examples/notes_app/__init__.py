"""A small app that uses the whole system: notes, tasks, projects and conversations as jobs."""
