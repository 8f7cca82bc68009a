"""Connect with the library ``websockets``, and translate its errors.

It is imported only to connect, so that publishers need not install it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import socket
import time
from types import ModuleType
from typing import Any, Protocol

from .. import network
from ..endpoint import ServerUrl, authorization_header
from ..errors import ConfigurationError
from ..extras import lacks
from .options import Token
from .reconnect import Failure, from_close_frame, from_http_response

MAX_MESSAGE_BYTES = 1024 * 1024
"""Four times the largest notification, because some servers escape characters in JSON."""

MAX_FRAGMENTS = 1024
"""Maximum number of frames of one message. Empty frames add nothing to its size, but use memory."""

MAX_UNSENT_BYTES = 1024 * 1024
"""Maximum size of unsent pongs, for a server that does not read them."""

logger = logging.getLogger("synap_realtime.subscriber")
_library_logger = logging.getLogger("synap_realtime.subscriber.websockets")
_library_logger.setLevel(logging.INFO)  # at DEBUG, it would log the token


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log a server's protocol violation without a traceback; it is not an error of this program."""
    record.exc_info = None
    return True


_library_logger.addFilter(_without_traceback)

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
"""Seconds to wait for a peer's close frame."""


def library(name: str) -> ModuleType:
    """Import a module of ``websockets``.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        return importlib.import_module(f"websockets.{name}")
    except ImportError as error:
        raise ConfigurationError(lacks("subscribe()", error, "subscriber")) from None


class Dialed(Protocol):
    """What a connection needs of the arguments of its subscriptions."""

    @property
    def address(self) -> ServerUrl: ...

    @property
    def token(self) -> Token: ...

    @property
    def subprotocol(self) -> str: ...

    def uri(self, after: str | None, *, with_token: bool) -> str:
        """Return the address of the WebSocket."""
        ...


class RefusedError(Exception):
    """The response to the handshake was not a WebSocket upgrade."""

    def __init__(self, response: Any) -> None:
        super().__init__(response.status_code)
        self.response = response


class _Bounds:
    """Limits for what a server may send; a mixin for the library's connections.

    The library limits the size of a message, but not frames that use memory without adding to it.
    """

    protocol: Any
    _fragments = 0

    def process_event(self, event: Any) -> None:
        """Check each frame before the library processes it."""
        opcode = getattr(event, "opcode", None)
        if opcode is not None and opcode < 8:  # data frames; the others are control frames
            self._fragments = 0 if event.fin else self._fragments + 1
            if self._fragments > MAX_FRAGMENTS:
                self.protocol.fail(1009, "too many fragments")
                self._cut()
                return
        elif opcode is not None and self._unsent_bytes() > MAX_UNSENT_BYTES:
            self._cut()
            return
        super().process_event(event)  # type: ignore[misc]

    def _unsent_bytes(self) -> int:
        return 0

    def _cut(self) -> None:
        raise NotImplementedError


@functools.cache
def connection_class(name: str) -> Any:
    """Return the library's connection class with our limits, and without redirects.

    A redirect is a rejection. The library would follow it to another host, and version 15.0 would
    send the token there. A connection that raises an error that is not the library's own is not
    modified.

    Args:
        name: ``asyncio.client`` or ``sync.client``.

    Raises:
        ConfigurationError: the library is not installed.
    """
    base = library(name).ClientConnection
    status = library("exceptions").InvalidStatus

    if name.startswith("asyncio"):

        class AsyncConnection(_Bounds, base):  # type: ignore[misc, valid-type]
            async def handshake(self, *args: Any, **kwargs: Any) -> None:
                try:
                    await super().handshake(*args, **kwargs)
                except status as error:
                    raise RefusedError(error.response) from None

            def _unsent_bytes(self) -> int:
                return int(self.transport.get_write_buffer_size())

            def _cut(self) -> None:
                self.transport.abort()

        return AsyncConnection

    class SyncConnection(_Bounds, base):  # type: ignore[misc, valid-type]
        def handshake(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().handshake(*args, **kwargs)
            except status as error:
                raise RefusedError(error.response) from None
            except AssertionError:
                # The library asserts that the connection is open when it sends its request; a
                # hostile server can close it before.
                raise ConnectionResetError("the server ended the handshake") from None

        def _cut(self) -> None:
            self.close_socket()

    return SyncConnection


def dial_arguments(
    name: str, options: Dialed, after: str | None, token: str | None
) -> dict[str, Any]:
    """Return the arguments of ``connect``, asynchronous or synchronous.

    Raises:
        ConfigurationError: no header can carry the token, or the environment's proxy is invalid.
    """
    url = options.address.url
    proxy = network.find_proxy(url, socks_library="python_socks")
    return {
        "create_connection": connection_class(name),
        "uri": options.uri(after, with_token=bool(token)),
        "subprotocols": [options.subprotocol],
        "additional_headers": {"Authorization": authorization_header("token", token)}
        if token
        else None,
        "proxy": str(proxy.url) if proxy else None,
        "compression": None,
        "open_timeout": OPEN_TIMEOUT_S,
        "close_timeout": CLOSE_TIMEOUT_S,
        # The protocol's own pings, which also confirm that this client is subscribed.
        "ping_interval": None,
        "logger": _library_logger,
        "max_size": MAX_MESSAGE_BYTES,
        "max_queue": 16,  # messages buffered for a slow consumer; more stay in the network
    }


def dial_socket(arguments: dict[str, Any], options: Dialed) -> None:
    """Connect a socket for the synchronous ``connect``, which does not limit the total time.

    The library gives each address of a host the whole timeout, and a name lookup has none. The rest
    of the time remains for the handshakes. The library connects to a proxy itself.

    Raises:
        OSError: the connection failed or timed out.
    """
    if arguments["proxy"] is not None:
        return
    url = options.address.url
    port = url.port or {"http": 80, "ws": 80}.get(url.scheme, 443)
    end = time.monotonic() + OPEN_TIMEOUT_S

    def attempt(address: str, timeout_s: float) -> socket.socket:
        return socket.create_connection((address, port), timeout_s)

    sock = network.connect(url.host, port, end, attempt)
    sock.settimeout(None)
    arguments["sock"] = sock
    arguments["open_timeout"] = max(0.001, end - time.monotonic())


def dial_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that websockets raises when it cannot connect."""
    exceptions = library("exceptions")
    return (
        OSError,
        UnicodeError,
        ImportError,
        ValueError,
        RefusedError,
        exceptions.WebSocketException,
    )


def read_dial_error(error: Exception) -> Failure:
    """Translate a failed connect. The library's text may contain the URL with its password.

    Raises:
        ConfigurationError: reconnecting cannot help.
    """
    exceptions = library("exceptions")
    if isinstance(error, RefusedError):
        response = error.response
        return from_http_response(
            response.status_code, response.headers, bytes(response.body or b"")
        )
    if isinstance(error, ImportError | exceptions.InvalidProxy):
        raise ConfigurationError(
            "the environment's proxy cannot be used; a SOCKS proxy needs: pip install python-socks"
        ) from None
    if isinstance(error, exceptions.InvalidMessage):
        return _read_foreign_answer(error.__cause__)
    if isinstance(error, exceptions.InvalidHeader):  # InvalidUpgrade of a 101 response is one
        return _not_ours(f"its handshake is invalid: {type(error).__name__}")
    if (problem := network.tls_problem(error)) is not None:
        return Failure(problem, is_permanent=True)
    if isinstance(error, TimeoutError):
        return Failure("did not answer in time")
    if isinstance(error, OSError):
        return Failure(f"could not be reached: {network.reason_of(error)}")
    if isinstance(error, UnicodeError):
        return Failure("could not be reached: no host can have this name")
    return Failure(f"did not respond as a WebSocket server ({type(error).__name__})")


_OLD_STATUS = re.compile(r"HTTP/1\.0 ([1-5][0-9]{2})(?![0-9])")


def _read_foreign_answer(cause: BaseException | None) -> Failure:
    """Describe a response that the library could not parse as HTTP/1.1."""
    if isinstance(cause, EOFError):
        return Failure("closed the connection before it responded")
    if (found := _OLD_STATUS.search(str(cause))) is not None:
        return from_http_response(int(found[1]), {}, b"")
    return _not_ours("it does not speak HTTP/1.1")


def _not_ours(why: str) -> Failure:
    return Failure(f"is not a room server ({why}); check the URL", is_permanent=True)


def read_closed(error: Any) -> Failure:
    """Translate the library's ``ConnectionClosed``."""
    if error.rcvd is not None:
        return from_close_frame(error.rcvd.code, error.rcvd.reason)
    # The library closed it: too large a message, not UTF-8, invalid frames.
    if error.sent is not None:
        return from_close_frame(1006, f"it sent invalid data ({error.sent.code})")
    return from_close_frame(1006, "")


def log_failed_renewal(error: Exception) -> None:
    """Log that a token function failed while a connection was open, which keeps its token."""
    logger.warning(
        "token function failed: %s; the connection ends when its token expires",
        type(error).__name__,
    )
