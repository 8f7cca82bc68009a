"""The state of one HTTP request on a connection."""

from __future__ import annotations

import asyncio

import httptools

from ..http.routes import MAX_BODY_BYTES
from ..messages import Request, RequestError


class HttpRequest(Request):
    """A request, as far as it has been received.

    Attributes:
        error: answers the request instead of its route.
        body: what was received of the body.
        size: the bytes of the body that were received, including discarded ones.
        is_complete: the body was received whole.
        is_answered: the response was written; the rest of the body is discarded.
        body_waiter: resolved when the body is complete, too large or will not be completed.
        weight: about the bytes of memory that the head takes, and the body once it is complete.
    """

    __slots__ = (
        "body",
        "body_waiter",
        "error",
        "is_answered",
        "is_complete",
        "is_http_10",
        "is_websocket",
        "keeps_alive",
        "size",
        "weight",
    )  # fmt: skip

    def __init__(
        self, method: str, path: str, query: str, headers: dict[str, str], address: str | None
    ) -> None:
        super().__init__(method, path, query, headers, address)
        self.keeps_alive = False
        self.is_http_10 = False
        self.is_websocket = False
        self.error: RequestError | None = None
        self.body: bytes | bytearray = b""
        self.size = 0
        self.is_complete = False
        self.is_answered = False
        self.body_waiter: asyncio.Future[None] | None = None
        self.weight = 0

    def append_body(self, chunk: bytes) -> None:
        """Add a part of the body. What is too large or no longer needed is dropped."""
        self.size += len(chunk)
        if self.is_answered:
            return
        if self.size > MAX_BODY_BYTES:
            self.body = b""
            self.notify()
        elif not self.body:
            self.body = chunk
        else:  # in a list, many small chunks would take more memory than their bytes
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += chunk

    def notify(self) -> None:
        """Wake the reader of the body, if there is one."""
        if self.body_waiter is not None and not self.body_waiter.done():
            self.body_waiter.set_result(None)


_SLASH = ord("/")


def parse_target(url: bytes) -> str:
    """Return the path and query of a request target.

    Of a target in absolute form (RFC 9112, section 3.2.2), these parts are returned.
    """
    if url[0] == _SLASH and b"#" not in url:  # the common case
        return url.decode("latin-1")
    if url[0] != _SLASH:
        try:
            parts = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            return "/" + url.decode("latin-1")
        url = parts.path or b"/"
        if parts.query is not None:
            url += b"?" + parts.query
    return url.decode("latin-1").partition("#")[0]
