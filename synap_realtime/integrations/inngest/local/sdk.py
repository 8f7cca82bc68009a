"""Call a function with the SDK's protocol, and parse the response.

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
"""Maximum length of a non-SDK response in the run's error, in characters."""


@dataclass(frozen=True, slots=True)
class SdkFailure:
    """A failed attempt, and whether and when to retry.

    Attributes:
        error: the SDK's error, or the real server's error for a failed transport.
        reason: Inngest's description of the failure, such as ``invalid status code: 500``.
        output: the response, if that is not the error.
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
    """The function has reached one step, or several parallel steps."""

    operations: list[dict[str, Any]] = field(default_factory=list)
    retriable: bool = True


Outcome = Returned | Steps | SdkFailure


def encode(body: dict[str, Any]) -> bytes | SdkFailure:
    """Encode a call request. The result of a step may not be JSON."""
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
        logger.warning("the app at %s could not be reached: %r; the attempt has failed", url, error)
        return _unreachable()
    except ReplyError as error:
        logger.warning("call to %s failed: %s; the attempt has failed", function.url, error)
        return failure("ResponseError", str(error))
    if "x-inngest-sdk" not in reply.headers:
        logger.warning(
            "%s is not an Inngest endpoint (HTTP %d); the attempt has failed", url, reply.status
        )
        return _no_sdk(reply)
    status, answered = reply.status, dict(reply.headers)
    try:
        answer = json.loads(reply.content)
        if status == 201:  # streamed: blanks, then the actual response in an envelope (section 9)
            status = int(answer["status"])
            answered |= {name.lower(): value for name, value in answer["headers"].items()}
            answer = json.loads(answer["body"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return failure("ResponseError", "the app's response is not in the SDK's format")
    no_retry = answered.get("x-inngest-no-retry") == "true"
    return read(status, answer, no_retry=no_retry, retry_after=answered.get("retry-after"))


def read(status: int, answer: Any, *, no_retry: bool, retry_after: str | None) -> Outcome:
    """Interpret an SDK's response."""
    if status == 206 and isinstance(answer, list):
        return Steps(answer, not no_retry)
    if status == 200:
        return Returned(answer)
    error = answer if isinstance(answer, dict) else {"name": "Error", "message": str(answer)}
    reason = "NonRetriableError" if no_retry else f"invalid status code: {status}"
    return SdkFailure(error, not no_retry, _retry_at(retry_after), reason)


def failure(name: str, message: str) -> SdkFailure:
    """Return the failure of a call that no SDK has handled; it may be retried."""
    return SdkFailure({"name": name, "message": message})


def _unreachable() -> SdkFailure:
    """Return the real server's error: it puts JSON into the message."""
    message = "Unable to reach SDK URL"
    error = {"error": message, "name": "Error", "message": message}
    output = json.dumps({"error": error}, separators=(",", ":"))
    return SdkFailure({**error, "message": output}, output=output)


def _no_sdk(reply: Reply) -> SdkFailure:
    """Return the error for a proxy, a crashed app, or an invalid address."""
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
