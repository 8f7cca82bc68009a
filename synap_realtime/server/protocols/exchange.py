"""A request on its way, and its answer."""

from __future__ import annotations

import asyncio

import httptools

from ..http.routes import MAX_BODY_BYTES
from ..messages import Request, RequestError


class HttpRequest(Request):
    """What has come of a request, and who waits for the rest.

    Attributes:
        problem: the answer, whatever it asks.
        wanted: somebody waits for the rest of the body.
        weight: about how many bytes of memory its head takes, and its body when that is complete.
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
        self.size += len(chunk)
        if self.is_answered:
            return
        if self.size > MAX_BODY_BYTES:
            self.body = b""
            self.notify()
        elif not self.body:
            self.body = chunk
        else:  # of many small ones, each would weigh more than what is in it
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += chunk

    def notify(self) -> None:
        if self.body_waiter is not None and not self.body_waiter.done():
            self.body_waiter.set_result(None)


_SLASH = ord("/")


def parse_target(url: bytes) -> str:
    """The path and the query; of an absolute target (RFC 9112, section 3.2.2) those parts."""
    if url[0] == _SLASH and b"#" not in url:  # as most do
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
