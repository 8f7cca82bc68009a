"""Create a note: its content goes to storage, its entity to the database."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from ..jobs import JobRun
from ..jobs.job_types import NOTE_CREATION
from ..protocol.payloads import NoteCreated
from . import validation
from .ports import Entity, Services


async def handle_note_creation(run: JobRun, services: Services) -> NoteCreated:
    """Create a note from ``content`` and, if given, ``title``.

    The default title is the first line of the content.

    Raises:
        InvalidInputError: the content is empty, or a member has the wrong type.
    """
    user_id = validation.user_of(run)
    content = validation.text(run.data, "content", label="The note")
    title = validation.optional_text(
        run.data, "title", label="The title", limit=validation.MAX_TITLE
    )
    note = Entity(
        id=validation.stable_id(run, "note"),
        kind="note",
        user_id=user_id,
        title=title or _first_line(content),
    )
    path = f"users/{quote(user_id, safe='')}/notes/{note.id}.md"

    async def upload() -> str:
        return await services.storage.put(path, content.encode(), "text/markdown; charset=utf-8")

    url = await run.step("upload-content", upload)

    async def create() -> None:
        await services.entities.create(replace(note, file_url=url, file_path=path))

    await run.step("create-entity", create)
    created = NoteCreated(entity_id=note.id, title=note.title, file_url=url, file_path=path)
    await run.send_event(
        "publish-completed",
        NOTE_CREATION.completed,
        {**created.model_dump(by_alias=True), "userId": user_id, "requestId": run.request_id},
    )
    return created


def _first_line(content: str) -> str:
    line = content.strip().splitlines()[0].lstrip("# ").strip()
    return line[:80] or "Untitled"
