"""Single requests to a room server, for callers in threads and in event loops."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, TypeVar

import httpx

from ..errors import ConfigurationError
from ..forks import importing, keep
from ..network import BoundedBody, deadline
from . import retry
from .encoding import ApiRequest
from .endpoint import Endpoint
from .responses import ApiResponse, read_body, response_from_error

if TYPE_CHECKING:
    from ..transport import AsyncTransport, DeadlineTransport

MAX_RESPONSE_BYTES = 1024 * 1024
"""Maximum number of response bytes to read. No room server sends more."""

MIN_BUDGET_S = 0.001

_EXPECTED_ERRORS = (
    TimeoutError,
    ConfigurationError,
    httpx.RequestError,
    httpx.InvalidURL,
    OSError,
    UnicodeError,
)
"""Errors of an attempt without a response: the network, the environment or the host name."""

_url = lru_cache(maxsize=128)(httpx.URL)  # parsed once because it never changes

Given = TypeVar("Given")
Own = TypeVar("Own")


def budget_s(timeout_s: float, deadline: float) -> float:
    """Return seconds for one attempt: its timeout, but at most until the deadline, by the monotonic
    clock.
    """
    return min(timeout_s, max(MIN_BUDGET_S, deadline - time.monotonic()))


class _Connections(ABC, Generic[Given, Own]):
    """A custom transport, or the package's own, which is created with the first request."""

    def __init__(self, endpoint: Endpoint, transport: Given | None) -> None:
        """Create a client; it connects and reads the environment at the first request."""
        self._endpoint = endpoint
        self._given = transport
        self._own: Own | None = None

    @property
    def is_own(self) -> bool:
        """Whether the package's own transport is in use, not a custom one."""
        return self._given is None

    def open(self) -> Given | Own:
        """Read the environment and import the dependencies of a request.

        Raises:
            ConfigurationError: an environment variable is invalid; names it.
        """
        if self._given is not None:
            return self._given
        if self._own is None:
            with importing():
                retry.load()
                self._own = self._create()
        return self._own

    @abstractmethod
    def _create(self) -> Own:
        """Create the own transport. Its module is imported with httpcore, only by publishers."""

    def _request(self, call: ApiRequest, timeout_s: float | None = None) -> httpx.Request:
        """Build the httpx request.

        It is passed directly to a transport. An httpx client would apply the environment, merge
        parameters and headers for each request, and store every cookie that a server sets.

        Args:
            timeout_s: timeout of each read and write in seconds; None if the caller limits the
                whole request.
        """
        return httpx.Request(
            "POST",
            _url(self._endpoint.url + call.path),
            headers=self._endpoint.headers,
            content=call.body,
            extensions={"timeout": httpx.Timeout(timeout_s).as_dict()},
        )

    def _is_bug(self, error: Exception) -> bool:
        """Whether a custom transport raised an error that is not one of the network."""
        return self._given is not None and not isinstance(error, _EXPECTED_ERRORS)


class HttpClient(_Connections[httpx.BaseTransport, "DeadlineTransport"]):
    """Connections to one room server for callers that are threads."""

    def _create(self) -> DeadlineTransport:
        from .. import transport

        return transport.DeadlineTransport(self._endpoint.address)

    def post(self, call: ApiRequest, budget_s: float) -> ApiResponse:
        """Make one attempt. Never raises for a failure of the network, the server or the
        environment.
        """
        try:
            return self._exchange(call, budget_s)
        except Exception as error:
            if self._is_bug(error):
                raise
            return response_from_error(self._endpoint, error)

    def _exchange(self, call: ApiRequest, budget_s: float) -> ApiResponse:
        end = time.monotonic() + budget_s
        transport = self.open()
        request = self._request(call, budget_s)
        with deadline(end):
            response = transport.handle_request(request)
            assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - as in httpx
            body = BoundedBody(response, MAX_RESPONSE_BYTES)
            try:
                for chunk in () if body.encoding else response.stream:
                    if time.monotonic() > end:  # for a custom transport
                        raise TimeoutError
                    if not body.add(chunk):
                        break
            finally:
                response.stream.close()
        return read_body(self._endpoint, response, body)

    def close(self) -> None:
        """Close the connections."""
        for transport in (self._given, self._own):
            if transport is not None:
                transport.close()
        self._own = None

    def renewed(self) -> HttpClient:
        """Return a copy for a forked child; the parent keeps using the connections."""
        if self._own is not None:
            self._own.abandon()
            keep(self._own)
        return HttpClient(self._endpoint, self._given)


class AsyncHttpClient(_Connections[httpx.AsyncBaseTransport, "AsyncTransport"]):
    """Connections of one event loop to one room server."""

    def _create(self) -> AsyncTransport:
        from .. import transport

        return transport.AsyncTransport(self._endpoint.address)

    async def post(self, call: ApiRequest, budget_s: float) -> ApiResponse:
        """Make one attempt; see :meth:`HttpClient.post`."""
        try:
            async with asyncio.timeout(budget_s):
                return await self._exchange(call)
        except Exception as error:
            if self._is_bug(error):
                raise
            return response_from_error(self._endpoint, error)

    async def _exchange(self, call: ApiRequest) -> ApiResponse:
        transport = self.open()
        response = await transport.handle_async_request(self._request(call))
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - as in httpx
        body = BoundedBody(response, MAX_RESPONSE_BYTES)
        try:
            if not body.encoding:
                async for chunk in response.stream:
                    if not body.add(chunk):
                        break
        finally:
            await response.stream.aclose()
        return read_body(self._endpoint, response, body)

    async def aclose(self) -> None:
        """Close the connections."""
        for transport in (self._given, self._own):
            if transport is not None:
                await transport.aclose()
        self._own = None

    def abandon(self) -> None:
        """Close the sockets of a closed event loop, which cannot close them itself."""
        if self._own is not None:
            self._own.abandon()
