"""Calling a function by the SDK's own protocol: what goes there, and what comes back.

See the Inngest SDK specification, sections 4.4, "Call Requests", and 5.1, "Reporting Steps".
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx

from .bodies import Reply, ReplyError, exchange
from .events import new_id
from .registry import Function

logger = logging.getLogger(__name__)

_MAX_SHOWN = 10_000
"""Characters of an answer that no SDK gave; they are shown in the run's error."""


@dataclass(frozen=True, slots=True)
class SdkFailure:
    """An attempt that failed, and whether and when to retry.

    Attributes:
        error: as the SDK tells it, or as the real server tells what went wrong on the way there.
        reason: how Inngest sees the failure, such as ``invalid status code: 500``.
        output: what came back, where that is not the error.
    """

    error: dict[str, Any]
    retriable: bool = True
    retry_at: datetime | None = None
    reason: str | None = None
    output: Any = None


@dataclass(frozen=True, slots=True)
class Returned:
    """The function has returned."""

    output: Any


@dataclass(frozen=True, slots=True)
class Steps:
    """The function has come to one step, or to several that are to run side by side."""

    operations: list[dict[str, Any]] = field(default_factory=list)
    retriable: bool = True


Outcome = Returned | Steps | SdkFailure


def encode(body: dict[str, Any]) -> bytes | SdkFailure:
    """A call request as it travels. What a step returned may be no JSON."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        return SdkFailure({"name": "OutputError", "message": f"a step's result: {error}"}, False)


async def call_over_http(
    client: httpx.AsyncClient, function: Function, body: dict[str, Any], step_id: str | None
) -> Outcome:
    """Call a function at its address."""
    if isinstance(content := encode(body), SdkFailure):
        return content
    headers = {
        "Content-Type": "application/json",
        "X-Inngest-Server-Kind": "dev",
        "X-Request-Id": new_id(),
        "X-Run-Id": body["ctx"]["run_id"],
    }
    url = _with_step(function.url, step_id)
    try:
        reply = await exchange(client, "POST", url, content=content, headers=headers)
    except httpx.RequestError as error:
        logger.warning("the app at %s could not be reached: %r", url, error)
        return _unreachable()
    except ReplyError as error:
        logger.warning("call to %s failed: %s", function.url, error)
        return failure("ResponseError", str(error))
    if "x-inngest-sdk" not in reply.headers:
        logger.warning("what answered %d at %s is no Inngest SDK", reply.status, url)
        return _no_sdk(reply)
    status, answered = reply.status, dict(reply.headers)
    try:
        answer = json.loads(reply.content)
        if status == 201:  # streamed: blanks, then the real answer in an envelope (section 9)
            status = int(answer["status"])
            answered |= {name.lower(): value for name, value in answer["headers"].items()}
            answer = json.loads(answer["body"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return failure("ResponseError", "the app's answer is not what the SDK sends")
    no_retry = answered.get("x-inngest-no-retry") == "true"
    return read(status, answer, no_retry=no_retry, retry_after=answered.get("retry-after"))


def read(status: int, answer: Any, *, no_retry: bool, retry_after: str | None) -> Outcome:
    """What an SDK's answer means."""
    if status == 206 and isinstance(answer, list):
        return Steps(answer, not no_retry)
    if status == 200:
        return Returned(answer)
    told = answer if isinstance(answer, dict) else {"name": "Error", "message": str(answer)}
    reason = "NonRetriableError" if no_retry else f"invalid status code: {status}"
    return SdkFailure(told, not no_retry, _retry_at(retry_after), reason)


def failure(name: str, message: str) -> SdkFailure:
    """A call that no SDK has answered; it may be tried again."""
    return SdkFailure({"name": name, "message": message})


def _unreachable() -> SdkFailure:
    """The real server puts its own error, as JSON, where a message should be."""
    message = "Unable to reach SDK URL"
    error = {"error": message, "name": "Error", "message": message}
    output = json.dumps({"error": error}, separators=(",", ":"))
    return SdkFailure({**error, "message": output}, output=output)


def _no_sdk(reply: Reply) -> SdkFailure:
    """A proxy, a crashed app, or a wrong address."""
    message = f"Your server returned HTTP {reply.status} before the SDK responded."
    stack = (
        "No step output was produced before the request failed — this can mean a proxy or load "
        "balancer in front of your app returned an error, or your app was unable to respond."
    )
    if text := reply.text[:_MAX_SHOWN]:
        kind = reply.headers.get("content-type", "unknown content-type")
        stack += f"\n\nUpstream response ({kind}):\n{text}"
    name = "Server returned a fatal error"
    return SdkFailure({"error": message, "name": name, "message": message, "stack": stack})


def _with_step(url: str, step_id: str | None) -> str:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query["stepId"] = step_id or "step"
    return urlunsplit(parts._replace(query=urlencode(query)))


def _retry_at(value: str | None) -> datetime | None:
    if not value:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
