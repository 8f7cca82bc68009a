"""Read how jobs stand, without a subscription. See PROTOCOL.md, "Job state"."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlencode

from ..documentation import see
from ..errors import InvalidArgumentError, ReadError
from ..protocol import rejections
from ..protocol.job_state import STATUSES, JobStatus
from ..protocol.rooms import UserId, request_room, user_room
from .fetching import ReadAnswer, ReadRequest, fetch, fetch_sync, invalid
from .options import Arguments, Token, check
from .reconnect import from_http_response
from .records import Job, JobList, parse_job_record

TIMEOUT_S = 10.0
MAX_LIMIT = 1000


async def get_job(
    request_id: UserId,
    url: str | None = None,
    token: Token = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Job | None:
    """Return how the job of a request stands. It can be read for days after it has ended.

    Args:
        request_id: the request.
        url, token: as for :func:`subscribe`. The token must allow to subscribe to the room of the
            request.
        timeout_s: maximum duration in seconds.

    Returns:
        None if the server has no record: no job of this request has begun yet, or it ended too
        long ago.

    Raises:
        InvalidArgumentError: an argument is invalid; names it.
        ConfigurationError: the URL, the token or the environment is invalid.
        ReadError: the server rejected the request, or is unreachable.

    See PROTOCOL.md, "Job state".
    """
    read = _job_read(request_id, url, token, timeout_s)
    return _read_job(read, await fetch(read, "get_job()"))


def get_job_sync(
    request_id: UserId,
    url: str | None = None,
    token: Token = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Job | None:
    """Return how the job of a request stands: the synchronous twin of :func:`get_job`."""
    read = _job_read(request_id, url, token, timeout_s)
    return _read_job(read, fetch_sync(read))


async def list_jobs(
    user_id: UserId,
    url: str | None = None,
    token: Token = None,
    *,
    status: JobStatus | Iterable[JobStatus] = (),
    type: str | None = None,
    limit: int = 100,
    after: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> JobList:
    """Return the jobs of a user, newest first.

    Args:
        user_id: the user.
        url, token: as for :func:`subscribe`. The token must allow to subscribe to the room of the
            user.
        status: only jobs with this status, or with one of these.
        type: only jobs of the type with this name.
        limit: maximum number of jobs, from 1 to 1,000.
        after: the ``next`` of the page before.
        timeout_s: maximum duration in seconds.

    Raises:
        InvalidArgumentError: an argument is invalid; names it.
        ConfigurationError: the URL, the token or the environment is invalid.
        ReadError: the server rejected the request, is unreachable, or keeps no records.

    See PROTOCOL.md, "Job state".
    """
    read = _list_read(user_id, url, token, status, type, limit, after, timeout_s)
    return _read_list(read, await fetch(read, "list_jobs()"))


def list_jobs_sync(
    user_id: UserId,
    url: str | None = None,
    token: Token = None,
    *,
    status: JobStatus | Iterable[JobStatus] = (),
    type: str | None = None,
    limit: int = 100,
    after: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> JobList:
    """Return the jobs of a user: the synchronous twin of :func:`list_jobs`."""
    read = _list_read(user_id, url, token, status, type, limit, after, timeout_s)
    return _read_list(read, fetch_sync(read))


def _job_read(request_id: UserId, url: str | None, token: Token, timeout_s: float) -> ReadRequest:
    room = request_room(request_id)
    target = f"/jobs/{quote(room.partition('_')[2], safe='')}"
    return _read(room, target, url, token, timeout_s)


def _list_read(
    user_id: UserId,
    url: str | None,
    token: Token,
    status: JobStatus | Iterable[JobStatus],
    type: str | None,
    limit: int,
    after: str | None,
    timeout_s: float,
) -> ReadRequest:
    room = user_room(user_id)
    statuses = _statuses(status)
    for field, value, expected in (
        ("type", type, "the name of a job type"),
        ("after", after, "the value of next of another page"),
    ):
        checked: object = value
        if checked is not None and not (isinstance(checked, str) and checked):
            raise InvalidArgumentError(field, f"expected {expected}")
    number: object = limit
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MAX_LIMIT:
        raise InvalidArgumentError("limit", f"expected 1 to {MAX_LIMIT}; got {limit!r}")
    query = {"status": ",".join(statuses), "type": type, "limit": str(limit), "after": after}
    given = urlencode({name: value for name, value in query.items() if value})
    target = f"/users/{quote(room.partition('_')[2], safe='')}/jobs?{given}"
    return _read(room, target, url, token, timeout_s)


def _statuses(given: object) -> list[str]:
    if isinstance(given, Iterable):
        statuses = [given] if isinstance(given, str) else list(given)
        if all(isinstance(each, str) and each in STATUSES for each in statuses):
            return statuses
    raise InvalidArgumentError("status", f"expected some of {', '.join(sorted(STATUSES))}")


def _read(room: str, target: str, url: str | None, token: Token, timeout_s: float) -> ReadRequest:
    options = check(Arguments(room, url, token))
    given: object = timeout_s
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < 86_400:
        raise InvalidArgumentError("timeout_s", f"expected seconds, more than 0; got {given!r}")
    return ReadRequest(options.address, target, token, float(timeout_s))


class _NotFoundError(Exception):
    """The server has no such record; the reason, if it gave one."""


def _decode(read: ReadRequest, answer: ReadAnswer) -> dict[str, Any]:
    """Return the content of a response.

    Raises:
        _NotFoundError: the server has no record.
        ReadError: the response is an error, or not that of a room server.
    """
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        content = None
    if answer.status == 404 and isinstance(content, dict) and content.get("code") == "not_found":
        raise _NotFoundError(rejections.reason_of(content))
    if answer.status != 200:
        failure = from_http_response(answer.status, answer.headers, answer.body)
        link = see(failure.topic) if failure.is_final else ""
        message = f"{read.address.named}: {failure.reason}{link}"
        raise ReadError(message, code=answer.status, retriable=not failure.is_final)
    if not isinstance(content, dict):
        raise invalid(read, "it answered with no JSON object")
    return content


def _read_job(read: ReadRequest, answer: ReadAnswer) -> Job | None:
    try:
        content = _decode(read, answer)
    except _NotFoundError:
        return None
    cursor = content.get("cursor")
    if not isinstance(cursor, str):
        raise invalid(read, "its answer has no cursor")
    return _job(read, content.get("job"), cursor)


def _read_list(read: ReadRequest, answer: ReadAnswer) -> JobList:
    try:
        content = _decode(read, answer)
    except _NotFoundError as reason:
        message = f"{read.address.named} has no list of jobs: {reason}"
        raise ReadError(message, code=404) from None
    jobs, cursor, following = content.get("jobs"), content.get("cursor"), content.get("next")
    if not isinstance(jobs, list) or not isinstance(cursor, str):
        raise invalid(read, "its answer has no jobs")
    found = tuple([_job(read, each) for each in jobs])
    return JobList(found, cursor, following if isinstance(following, str) else None)


def _job(read: ReadRequest, wire: object, cursor: str = "") -> Job:
    try:
        return parse_job_record(wire, cursor)
    except ValueError as error:
        raise invalid(read, f"its answer has {error}") from None
