"""Complete a task."""

from __future__ import annotations

from ..errors import InvalidInputError
from ..jobs import JobRun
from ..protocol.payloads import TaskCompleted
from . import validation
from .ports import Services


async def handle_task_completion(run: JobRun, services: Services) -> TaskCompleted:
    """Mark the task ``entityId`` as done.

    Raises:
        InvalidInputError: the id is missing, or this user has no such task.
    """
    user_id = validation.user_of(run)
    entity_id = validation.text(run.data, "entityId", label="The task's ID", limit=200)

    async def complete() -> str:
        completed_at = await services.entities.complete_task(entity_id, user_id)
        if completed_at is None:
            raise InvalidInputError("Task not found.")
        return completed_at

    completed_at = await run.step("complete-task", complete)
    return TaskCompleted(entity_id=entity_id, status="done", completed_at=completed_at)
