"""Calling a function over HTTP, by the SDK's own protocol.

See the Inngest SDK specification, sections 4.4, "Call Requests", and 5.1, "Reporting Steps".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed: the error as the SDK tells it, and whether and when to retry."""

    error: dict[str, Any]
    retriable: bool = True
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """The function has returned."""

    output: Any


@dataclass(frozen=True, slots=True)
class Steps:
    """The function has come to one step, or to several that are to run side by side."""

    operations: list[dict[str, Any]] = field(default_factory=list)
    retriable: bool = True


Outcome = Returned | Steps | Failure


async def call(
    client: httpx.AsyncClient,
    url: str,
    body: dict[str, Any],
    *,
    step_id: str | None = None,
    request_id: str,
) -> Outcome:
    """Call a function once. Everything that can go wrong is a :class:`Failure`.

    Args:
        client: how to reach the app.
        url: the function's address, as it was registered.
        body: the call request: event, events, steps, ctx.
        step_id: the hashed id of the one step to run, in a parallel group.
        request_id: names this request in the app's logs.
    """
    headers = {
        "Content-Type": "application/json",
        "X-Inngest-Server-Kind": "dev",
        "X-Request-Id": request_id,
    }
    try:
        content = json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        return Failure({"name": "OutputError", "message": f"a step's result: {error}"}, False)
    try:
        response = await client.post(_with_step(url, step_id), content=content, headers=headers)
    except httpx.RequestError as error:
        return _failure("RequestError", f"the app could not be reached: {error!r}")
    if "x-inngest-sdk" not in response.headers:
        return _failure(
            "ResponseError",
            f"what answered {response.status_code} at {urlsplit(url).path} is no Inngest SDK",
        )
    status, answered = response.status_code, dict(response.headers)
    try:
        answer = response.json()
        if status == 201:  # streamed: blanks, then the real answer in an envelope (section 9)
            status = int(answer["status"])
            answered |= {name.lower(): value for name, value in answer["headers"].items()}
            answer = json.loads(answer["body"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return _failure("ResponseError", "the app's answer is not what the SDK sends")
    retriable = answered.get("x-inngest-no-retry") != "true"
    if status == 206 and isinstance(answer, list):
        return Steps(answer, retriable)
    if status == 200:
        return Returned(answer)
    told = answer if isinstance(answer, dict) else {"name": "Error", "message": str(answer)}
    return Failure(told, retriable, _retry_at(answered.get("retry-after")))


def _failure(name: str, message: str) -> Failure:
    return Failure({"name": name, "message": message})


def _with_step(url: str, step_id: str | None) -> str:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query["stepId"] = step_id or "step"
    return urlunsplit(parts._replace(query=urlencode(query)))


def _retry_at(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
