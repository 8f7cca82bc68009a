"""Create a task: an entity and its details."""

from __future__ import annotations

from ..jobs import JobRun
from ..protocol.payloads import TaskCreated
from . import validation
from .ports import Entity, Services, TaskDetails

STATUSES = ("todo", "in_progress", "done")
PRIORITIES = ("medium", "low", "high", "urgent")


async def handle_task_creation(run: JobRun, services: Services) -> TaskCreated:
    """Create a task from ``title`` and, if given, ``description``, ``status``, ``priority``,
    ``dueDate`` and ``projectId``.

    Raises:
        InvalidInputError: the title is missing, or a member is invalid.
    """
    title = validation.text(run.data, "title", label="The title", limit=validation.MAX_TITLE)
    task = Entity(
        id=validation.stable_id(run, "task"),
        kind="task",
        user_id=validation.user_of(run),
        title=title,
        description=validation.optional_text(run.data, "description", label="The description"),
    )
    details = TaskDetails(
        entity_id=task.id,
        status=validation.one_of(run.data, "status", STATUSES, label="The status"),
        priority=validation.one_of(run.data, "priority", PRIORITIES, label="The priority"),
        due_date=validation.optional_date(run.data, "dueDate", label="The due date"),
        project_id=validation.optional_text(run.data, "projectId", label="The project", limit=200),
    )

    async def create_entity() -> None:
        await services.entities.create(task)

    async def create_details() -> None:
        await services.entities.create_task_details(details)

    await run.step("create-entity", create_entity)
    await run.step("create-task-details", create_details)
    return TaskCreated(
        entity_id=task.id,
        title=task.title,
        status=details.status,
        priority=details.priority,
        due_date=details.due_date,
        project_id=details.project_id,
    )
