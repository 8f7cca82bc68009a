"""Create a project: an entity with dates."""

from __future__ import annotations

from datetime import datetime

from ..errors import InvalidInputError
from ..jobs import JobRun
from ..protocol.payloads import ProjectCreated
from . import validation
from .ports import Entity, Services


async def handle_project_creation(run: JobRun, services: Services) -> ProjectCreated:
    """Create a project from ``title`` and, if given, ``description``, ``startDate``, ``endDate``.

    Raises:
        InvalidInputError: the title is missing, a date is invalid, or the end is before the start.
    """
    title = validation.text(run.data, "title", label="The title", limit=validation.MAX_TITLE)
    start = validation.optional_date(run.data, "startDate", label="The start")
    end = validation.optional_date(run.data, "endDate", label="The end")
    if start and end and _day(end) < _day(start):
        raise InvalidInputError("The project ends before it starts.")
    project = Entity(
        id=validation.stable_id(run, "project"),
        kind="project",
        user_id=validation.user_of(run),
        title=title,
        description=validation.optional_text(run.data, "description", label="The description"),
        start_date=start,
        end_date=end,
    )

    async def create() -> None:
        await services.entities.create(project)

    await run.step("create-entity", create)
    return ProjectCreated(
        entity_id=project.id,
        title=project.title,
        description=project.description,
        start_date=start,
        end_date=end,
    )


def _day(text: str) -> str:
    return datetime.fromisoformat(text).date().isoformat()
