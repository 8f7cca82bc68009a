"""Single requests to a room server."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING

import httpx

from ..errors import ConfigurationError
from ..forks import importing
from ..network import BoundedBody, deadline
from . import retry
from .encoding import ApiRequest
from .endpoint import Endpoint
from .responses import ApiResponse, read_body, response_from_error

if TYPE_CHECKING:
    from .transport import DeadlineTransport

MAX_ANSWER_BYTES = 1024 * 1024
"""Maximum number of response bytes to read. No room server sends more."""

TRANSPORT_ERRORS = (httpx.RequestError, httpx.InvalidURL, OSError, UnicodeError)
"""Errors that an HTTP client raises when there is no response or the host name is invalid."""

_url = lru_cache(maxsize=128)(httpx.URL)  # parsed once because it never changes


def build_request(
    endpoint: Endpoint, call: ApiRequest, timeout_s: float | None = None
) -> httpx.Request:
    """Build the httpx request.

    It is passed directly to a transport. An httpx client would apply the environment, merge
    parameters and headers for each request, and store every cookie that a server sets.

    Args:
        timeout_s: timeout of each read and write in seconds; None if the caller limits the whole
            request.
    """
    return httpx.Request(
        "POST",
        _url(endpoint.url + call.path),
        headers=endpoint.headers,
        content=call.body,
        extensions={"timeout": httpx.Timeout(timeout_s).as_dict()},
    )


class HttpClient:
    """Connections to one room server, and single requests over them."""

    def __init__(self, endpoint: Endpoint, transport: httpx.BaseTransport | None) -> None:
        """Create a client; it connects and reads the environment at the first request."""
        self._endpoint = endpoint
        self._given = transport
        self._own: DeadlineTransport | None = None

    @property
    def is_own(self) -> bool:
        """Whether the package's own transport is in use, not a custom one."""
        return self._given is None

    def open(self) -> httpx.BaseTransport:
        """Read the environment and import the dependencies of a request.

        Raises:
            ConfigurationError: an environment variable is invalid; names it.
        """
        if self._given is not None:
            return self._given
        if self._own is None:
            with importing():
                # Imported with httpcore, only by publishers.
                from .transport import DeadlineTransport

                retry.load()
                self._own = DeadlineTransport(self._endpoint.address)
        return self._own

    def post(self, call: ApiRequest, budget_s: float) -> ApiResponse:
        """Make one attempt. Never raises for a failure of the network, the server or the
        environment.
        """
        try:
            return self._post(call, budget_s)
        except (TimeoutError, ConfigurationError, *TRANSPORT_ERRORS) as error:
            return response_from_error(self._endpoint, error)
        except Exception as error:
            if self._given is not None:
                raise
            return response_from_error(self._endpoint, error)

    def close(self) -> None:
        for transport in (self._given, self._own):
            if transport is not None:
                transport.close()
        self._own = None

    def renewed(self) -> HttpClient:
        """Return a copy for a forked child; the parent keeps using the connections."""
        if self._own is not None:
            self._own.abandon()
        return HttpClient(self._endpoint, self._given)

    def _post(self, call: ApiRequest, budget_s: float) -> ApiResponse:
        end = time.monotonic() + budget_s
        transport = self.open()
        request = build_request(self._endpoint, call, budget_s)
        with deadline(end):
            response = transport.handle_request(request)
            assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - as in httpx
            body = BoundedBody(response, MAX_ANSWER_BYTES)
            try:
                for chunk in () if body.encoding else response.stream:
                    if time.monotonic() > end:  # for a custom transport
                        raise TimeoutError
                    if not body.add(chunk):
                        break
            finally:
                response.stream.close()
        return read_body(self._endpoint, response, body)
