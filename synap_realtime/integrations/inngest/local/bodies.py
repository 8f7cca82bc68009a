"""Read request bodies and the responses of apps, with size limits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.requests import ClientDisconnect, Request

MAX_EVENTS_BYTES = 4 * 1024 * 1024
"""Maximum size of a request that sends events or registers an app; Inngest's own limit."""

MAX_REPLY_BYTES = 32 * 1024 * 1024
"""Maximum size of the response of an app or a worker: Inngest's limit of a run's state."""

_PASSED_OVER = 16
"""Factor of the size limit up to which a body is read and discarded. A client whose connection is
closed while it sends cannot read the response.
"""

BODY_TIMEOUT_S = 20.0
"""Seconds within which a request's body must arrive."""

JSON = "application/json"
PROTOBUF = "application/protobuf"


class BodyError(Exception):
    """The request's body is rejected.

    Attributes:
        status: of the response; the message is its reason.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ReplyError(Exception):
    """The app's response is invalid; the message states the reason."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An app's response."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


async def read_body(request: Request, media_type: str, max_bytes: int) -> bytes:
    """Read a request's body.

    Args:
        media_type: the required ``Content-Type``. A page of another site cannot send JSON or
            protobuf without a CORS preflight, which this server never allows.
        max_bytes: counted as the bytes arrive, regardless of ``Content-Length``.

    Raises:
        BodyError: 408, 413 or 415.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != media_type:
        raise BodyError(415, f"send Content-Type: {media_type}")
    too_large = BodyError(413, f"a body has at most {max_bytes} bytes")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > _PASSED_OVER * max_bytes:
                    raise too_large
                if size <= max_bytes:
                    body += chunk
    except TimeoutError:
        raise BodyError(408, f"a body must arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise BodyError(400, "client disconnected before the body was complete") from None
    if size > max_bytes:
        raise too_large
    return bytes(body)


async def exchange(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> Reply:
    """Send a request to an app and read its response, up to ``MAX_REPLY_BYTES``."""
    # A small compressed response could decompress to any size.
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    request = client.build_request(method, url, headers=headers, **options)
    response = await client.send(request, stream=True, follow_redirects=False)
    try:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ReplyError("the app's response is compressed, which the request did not accept")
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > MAX_REPLY_BYTES:
                raise ReplyError(f"the app's response has more than {MAX_REPLY_BYTES} bytes")
    finally:
        await response.aclose()
    return Reply(response.status_code, response.headers, bytes(content))
