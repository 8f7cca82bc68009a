"""The routes that read the records of jobs. See PROTOCOL.md, "Job state"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import InvalidArgumentError
from ...protocol.job_state import MAX_NAME_LENGTH, STATUSES
from ...protocol.rooms import Room, request_room, user_room
from ..auth.authorization import AccessControl
from ..auth.limits import Limits
from ..errors import UnavailableError
from ..messages import Request, RequestError, Response, bad_request, json_response
from ..stores.base import JobPosition, JobQuery, JobStore, position_of
from .openapi import POSITION_PATTERN
from .reads import parse_limit

_POSITION = re.compile(POSITION_PATTERN, re.DOTALL)


class JobReads:
    """Handles the routes that read the records of jobs."""

    def __init__(self, store: JobStore | None, access: AccessControl, limits: Limits) -> None:
        """
        Args:
            store: None if the store of the node keeps no records.
        """
        self._store = store
        self._access = access
        self._limits = limits
        self._stopped = False

    def stop(self) -> None:
        """Answer all requests with 503 from now on: the store is being closed."""
        self._stopped = True

    async def job(self, request: Request) -> Response:
        """Handle ``GET /jobs/{requestId}``."""
        request_id = request.path_segments[1]
        try:
            room = request_room(request_id)
        except InvalidArgumentError as error:
            raise bad_request("Invalid request id", f"requestId: {error.problem}") from error
        store = await self._admit(request, room)
        record, cursor = await store.get_job(room, request_id)
        if record is None:
            raise _not_found(
                "there is no record of a job of this request: nothing has reported about one yet, "
                "or the record has expired",
                is_routine=True,  # a client that follows a job asks before it has begun
            )
        return self._answer(request, {"job": record.to_wire(), "cursor": str(cursor)})

    async def jobs(self, request: Request) -> Response:
        """Handle ``GET /users/{id}/jobs``."""
        try:
            room = user_room(request.path_segments[1])
        except InvalidArgumentError as error:
            raise bad_request("Invalid user id", f"id: {error.problem}") from error
        store = await self._admit(request, room)
        page = await store.list_jobs(room, _parse_query(request.query))
        following = None
        if page.more:
            started_at, job_id = position_of(page.records[-1])
            following = f"{started_at}/{job_id}"
        jobs = [record.to_wire(has_text=False) for record in page.records]
        content = {"jobs": jobs, "cursor": str(page.cursor), "next": following}
        return self._answer(request, content)

    async def _admit(self, request: Request, room: Room) -> JobStore:
        """Check that the caller may read a room. Return the store.

        Raises:
            RequestError, RejectedError: the request is rejected.
        """
        if self._stopped:
            raise UnavailableError("the server has stopped")
        claims = await self._access.authenticate_counted(request)
        await self._access.authorize(claims, "subscribe", room)
        if self._store is None:
            raise _not_found("the store of this server keeps no records of jobs")
        return self._store

    def _answer(self, request: Request, content: Mapping[str, Any]) -> Response:
        response = json_response(200, content)
        self._limits.count_read(request.claims, request.address, len(response.body))
        return response


def _not_found(details: str, *, is_routine: bool = False) -> RequestError:
    return RequestError(404, "not_found", "Not found", details, is_routine=is_routine)


def _parse_query(query: Mapping[str, str]) -> JobQuery:
    """Parse the query parameters of a list.

    Raises:
        RequestError: 400, names the parameter.
    """
    statuses: frozenset[str] = frozenset()
    if (text := query.get("status")) is not None:
        statuses = frozenset(text.split(","))
        if not statuses <= STATUSES:
            known = ", ".join(sorted(STATUSES))
            raise bad_request(
                "Invalid status", f"status: expected some of {known}, separated by commas"
            )
    type = query.get("type")
    if type is not None and len(type) > MAX_NAME_LENGTH:
        raise bad_request("Invalid type", f"type: expected 1 to {MAX_NAME_LENGTH} characters")
    after = None
    if (text := query.get("after")) is not None:
        if not _POSITION.fullmatch(text):
            raise bad_request(
                "Invalid position", "after: expected the value of 'next' of another response"
            )
        after = JobPosition(*text.split("/", 1))
    return JobQuery(parse_limit(query.get("limit")), statuses, type, after)
