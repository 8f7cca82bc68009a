"""Make one bounded request for a read, by an event loop or without one."""

from __future__ import annotations

import asyncio
import base64
import inspect
import time
from collections.abc import Mapping
from typing import NamedTuple

import httpx

from ..endpoint import ServerUrl, authorization_header
from ..errors import ReadError
from ..event_loops import running_loop
from ..network import BoundedBody, deadline, reason_of, tls_problem
from .options import Token, brought

MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""Maximum size of a response. A text has at most 1 MiB, and a list ends at about as much."""


class ReadRequest(NamedTuple):
    """The validated arguments of a request."""

    address: ServerUrl
    target: str
    token: Token
    timeout_s: float


class ReadAnswer(NamedTuple):
    """A response, whose body is complete."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def _request(read: ReadRequest, token: str | None) -> httpx.Request:
    """Build the request. A token replaces the URL's user and password."""
    url = read.address.url
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = authorization_header("token", token)
    elif url.userinfo:
        basic = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers["Authorization"] = f"Basic {basic}"
    base = _base(url)
    timeout = httpx.Timeout(read.timeout_s).as_dict()
    return httpx.Request(
        "GET", f"{base}{read.target}", headers=headers, extensions={"timeout": timeout}
    )


def _base(url: httpx.URL) -> str:
    scheme = {"ws": "http", "wss": "https"}.get(url.scheme, url.scheme)
    return str(url.copy_with(scheme=scheme, username=None, password=None)).rstrip("/")


async def fetch(read: ReadRequest, caller: str) -> ReadAnswer:
    """Make a request. ``caller`` is the public function, for an error.

    Raises:
        ConfigurationError: no event loop is running.
        ReadError: the server is unreachable, or not a room server.
    """
    running_loop(caller, f"call {caller.replace('()', '_sync()')}")
    from ..transport import AsyncTransport

    token = await _token(read)
    try:
        async with asyncio.timeout(read.timeout_s):
            transport = AsyncTransport(httpx.URL(_base(read.address.url)))
            try:
                response = await transport.handle_async_request(_request(read, token))
                assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - as in httpx
                body = _body(response)
                try:
                    async for chunk in response.stream:
                        _add(read, body, chunk)
                finally:
                    await response.stream.aclose()
            finally:
                await transport.aclose()
    except _FAILURES as error:
        raise _failed(read, error) from None
    return ReadAnswer(response.status_code, response.headers, body.content)


async def _token(read: ReadRequest) -> str | None:
    if not callable(read.token):
        return read.token
    given = read.token()
    if inspect.isawaitable(given):
        try:
            async with asyncio.timeout(read.timeout_s) as limit:
                given = await given
        except TimeoutError:
            if not limit.expired():
                raise  # raised by the function itself
            raise ReadError("the token function timed out", retriable=True) from None
    return brought(given)


def fetch_sync(read: ReadRequest) -> ReadAnswer:
    """Make a request: the synchronous twin of :func:`fetch`."""
    from ..transport import DeadlineTransport

    token = brought(read.token()) if callable(read.token) else read.token
    try:
        transport = DeadlineTransport(httpx.URL(_base(read.address.url)))
        try:
            with deadline(time.monotonic() + read.timeout_s):
                response = transport.handle_request(_request(read, token))
                assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - as in httpx
                body = _body(response)
                try:
                    for chunk in response.stream:
                        _add(read, body, chunk)
                finally:
                    response.stream.close()
        finally:
            transport.close()
    except _FAILURES as error:
        raise _failed(read, error) from None
    return ReadAnswer(response.status_code, response.headers, body.content)


_FAILURES = (TimeoutError, httpx.RequestError, httpx.InvalidURL, OSError, UnicodeError)


def _body(response: httpx.Response) -> BoundedBody:
    return BoundedBody(response, MAX_RESPONSE_BYTES)


def _add(read: ReadRequest, body: BoundedBody, chunk: bytes) -> None:
    if body.encoding:
        raise invalid(read, f"it answered with Content-Encoding {body.encoding!r}")
    if not body.add(chunk):
        raise invalid(read, f"it answered with more than {MAX_RESPONSE_BYTES} bytes")


def _failed(read: ReadRequest, error: Exception) -> ReadError:
    named = read.address.named
    if (problem := tls_problem(error)) is not None:
        return ReadError(f"{named} {problem}")
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return ReadError(f"{named} did not answer in time", retriable=True)
    return ReadError(f"{named} could not be reached: {reason_of(error)}", retriable=True)


def invalid(read: ReadRequest, problem: str) -> ReadError:
    """Return the error that a response is not that of a room server."""
    return ReadError(f"{read.address.named} is not a room server ({problem}); check the URL")
