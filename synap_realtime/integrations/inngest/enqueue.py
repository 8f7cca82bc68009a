"""Enqueue a job for an Inngest function, and build the response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import inngest

from ...jobs.accepted import accepted_response, new_request_id
from ...protocol.rooms import user_room


async def enqueue(
    client: inngest.Inngest,
    event: str,
    data: Mapping[str, Any],
    *,
    user_id: str,
    request_id: str | None = None,
    url: str | None = None,
) -> dict[str, Any]:
    """Send the event that starts a job, and return the body of the 202 response.

    ::

        @app.post("/api/notes", status_code=202)
        async def create_note(note: Note, user: User) -> dict[str, object]:
            data = {"content": note.content}
            return await enqueue(client, "note.creation.requested", data, user_id=user.id)

    Args:
        event: the event's name. Its data is ``data`` with ``userId`` and ``requestId``.
        user_id: the requesting user, who is notified.
        request_id: default: a new one. It is also the event's id, so that a repeated request runs
            one job.
        url: the room server as browsers reach it; see :func:`accepted_response`.

    Returns:
        see :func:`accepted_response`.

    Raises:
        InvalidArgumentError: an id is not valid in a room id.
        ConfigurationError: see :func:`accepted_response`.
        Exception: the event was not accepted, and no job runs. The errors of Inngest's client
            have no public class.
    """
    body, started = _prepare(event, data, user_id, request_id, url)
    await client.send(started)
    return body


def enqueue_sync(
    client: inngest.Inngest,
    event: str,
    data: Mapping[str, Any],
    *,
    user_id: str,
    request_id: str | None = None,
    url: str | None = None,
) -> dict[str, Any]:
    """Synchronous variant of :func:`enqueue`."""
    body, started = _prepare(event, data, user_id, request_id, url)
    client.send_sync(started)
    return body


def _prepare(
    event: str, data: Mapping[str, Any], user_id: str, request_id: str | None, url: str | None
) -> tuple[dict[str, Any], inngest.Event]:
    user_room(user_id)
    request_id = request_id or new_request_id()
    body = accepted_response(request_id, url=url)
    payload = {**data, "userId": user_id, "requestId": request_id}
    return body, inngest.Event(id=request_id, name=event, data=payload)
