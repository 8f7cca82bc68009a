"""Reading request bodies and the answers of apps, each up to a bound."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.requests import ClientDisconnect, Request

MAX_EVENTS_BYTES = 4 * 1024 * 1024
"""Of a request that sends events or registers an app; Inngest takes no more."""

MAX_REPLY_BYTES = 32 * 1024 * 1024
"""Of an app's or a worker's answer: as much as Inngest keeps of a run's state."""

_PASSED_OVER = 16
"""So many times the bound of a body is read and dropped: a client that is cut while it sends cannot
read the answer."""

BODY_TIMEOUT_S = 20.0
"""How long a request's body may take to arrive."""

JSON = "application/json"
PROTOBUF = "application/protobuf"


class BodyError(Exception):
    """The request's body is refused.

    Attributes:
        status: of the answer, with the message as its reason.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ReplyError(Exception):
    """The app's answer cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an app answered."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


async def read_body(request: Request, media_type: str, max_bytes: int) -> bytes:
    """A request's body.

    Args:
        media_type: that ``Content-Type`` must name. A page of another site cannot send JSON or
            protobuf without asking first (CORS preflight), and nobody answers yes here.
        max_bytes: counted as the bytes arrive, whatever ``Content-Length`` says.

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
        raise BodyError(408, f"a body has to arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise BodyError(400, "the client left before its body was complete") from None
    if size > max_bytes:
        raise too_large
    return bytes(body)


async def exchange(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> Reply:
    """Send an app a request and read its answer, up to ``MAX_REPLY_BYTES``.

    A redirect is not followed: it could lead to another machine, and the request holds events.

    Args:
        options: as :meth:`httpx.AsyncClient.build_request` takes them.

    Raises:
        httpx.RequestError: the app could not be reached.
        ReplyError: its answer is too large or compressed.
    """
    # Compressed, a small answer could be of any size.
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    request = client.build_request(method, url, headers=headers, **options)
    response = await client.send(request, stream=True, follow_redirects=False)
    try:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ReplyError("the app's answer is compressed, which it was asked not to be")
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > MAX_REPLY_BYTES:
                raise ReplyError(f"the app's answer has more than {MAX_REPLY_BYTES} bytes")
    finally:
        await response.aclose()
    return Reply(response.status_code, response.headers, bytes(content))
