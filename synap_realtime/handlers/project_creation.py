"""A project: an entity with a time."""

from __future__ import annotations

from datetime import datetime

from ..errors import InvalidInputError
from ..jobs import JobRun
from ..protocol.payloads import ProjectCreated
from . import inputs
from .ports import Entity, Services


async def handle_project_creation(run: JobRun, services: Services) -> ProjectCreated:
    """Create a project from ``title`` and, if given, ``description``, ``startDate``, ``endDate``.

    Raises:
        InvalidInputError: there is no title, a date is none, or it ends before it starts.
    """
    title = inputs.text(run.data, "title", label="The title", limit=inputs.MAX_TITLE)
    start = inputs.optional_date(run.data, "startDate", label="The start")
    end = inputs.optional_date(run.data, "endDate", label="The end")
    if start and end and _day(end) < _day(start):
        raise InvalidInputError("The project ends before it starts.")
    project = Entity(
        id=inputs.stable_id(run, "project"),
        kind="project",
        user_id=inputs.user_of(run),
        title=title,
        description=inputs.optional_text(run.data, "description", label="The description"),
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
