"""What both shells tell the library ``websockets``, and how its errors read.

It is imported only when someone dials, so that publishers need not have it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import socket
import time
from types import ModuleType
from typing import Any

from .. import network
from ..endpoint import authorization_header
from ..errors import ConfigurationError
from ..extras import lacks
from ..protocol.control import SUBPROTOCOL
from .options import Options
from .reconnect import Failure, from_close_frame, from_http_response

MAX_MESSAGE_BYTES = 1024 * 1024
"""Four times the largest notification: some servers write JSON with escapes."""

MAX_FRAGMENTS = 1024
"""Frames of one message. Empty ones add nothing to its size, but each takes memory."""

MAX_UNSENT_BYTES = 1024 * 1024
"""Answers to pings that the server does not read."""

_library_logger = logging.getLogger("synap_realtime.subscriber.websockets")
_library_logger.setLevel(logging.INFO)  # at DEBUG it would write down the token


def _without_traceback(record: logging.LogRecord) -> bool:
    """What a server does wrong is no fault of this program."""
    record.exc_info = None
    return True


_library_logger.addFilter(_without_traceback)

OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
"""A peer that does not say goodbye in this time is left."""


def library(name: str) -> ModuleType:
    """A module of ``websockets``.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        return importlib.import_module(f"websockets.{name}")
    except ImportError as error:
        raise ConfigurationError(lacks("subscribe()", error, "subscriber")) from None


class RefusedError(Exception):
    """The handshake was answered with something else than a WebSocket."""

    def __init__(self, response: Any) -> None:
        super().__init__(response.status_code)
        self.response = response


class _Bounds:
    """What a connection takes from its server; mixed into the library's connections.

    The library bounds the size of a message, but not what takes memory without adding to it.
    """

    protocol: Any
    _fragments = 0

    def process_event(self, event: Any) -> None:
        """Look at each frame before the library does."""
        opcode = getattr(event, "opcode", None)
        if opcode is not None and opcode < 8:  # data; the others are control frames
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
    """The library's connection with our bounds, and without redirects.

    A redirect is a refusal: the library would follow it to another host, and its version 15.0
    takes the token along. A connection that raises another error than its own is left alone.

    Args:
        name: ``asyncio.client`` or ``sync.client``.

    Raises:
        ConfigurationError: the library is not installed.
    """
    base = library(name).ClientConnection
    status = library("exceptions").InvalidStatus

    if name.startswith("asyncio"):

        class Connection(_Bounds, base):  # type: ignore[misc, valid-type]
            async def handshake(self, *args: Any, **kwargs: Any) -> None:
                try:
                    await super().handshake(*args, **kwargs)
                except status as error:
                    raise RefusedError(error.response) from None

            def _unsent_bytes(self) -> int:
                return int(self.transport.get_write_buffer_size())

            def _cut(self) -> None:
                self.transport.abort()

    else:

        class Connection(_Bounds, base):  # type: ignore[misc, valid-type, no-redef]
            def handshake(self, *args: Any, **kwargs: Any) -> None:
                try:
                    super().handshake(*args, **kwargs)
                except status as error:
                    raise RefusedError(error.response) from None
                except AssertionError:
                    # The library asserts that the connection has not ended before its request is
                    # sent, and a hostile server can end it before.
                    raise ConnectionResetError("the server ended the handshake") from None

            def _cut(self) -> None:
                self.close_socket()

    return Connection


def dial_arguments(
    name: str, options: Options, after: str | None, token: str | None
) -> dict[str, Any]:
    """The arguments of a ``connect``, the asynchronous or the synchronous.

    Raises:
        ConfigurationError: no header can carry the token, or the environment's proxy is unusable.
    """
    url = options.address.url
    proxy = network.find_proxy(url, socks_library="python_socks")
    return {
        "create_connection": connection_class(name),
        "uri": options.uri(after, with_token=bool(token)),
        "subprotocols": [SUBPROTOCOL],
        "additional_headers": {"Authorization": authorization_header("token", token)}
        if token
        else None,
        "proxy": str(proxy.url) if proxy else None,
        "compression": None,
        "open_timeout": OPEN_TIMEOUT_S,
        "close_timeout": CLOSE_TIMEOUT_S,
        "ping_interval": None,  # the contract's own pings, which also say that we listen
        "logger": _library_logger,
        "max_size": MAX_MESSAGE_BYTES,
        "max_queue": 16,  # messages that wait for a slow consumer; more wait in the network
    }


def dial_socket(arguments: dict[str, Any], options: Options) -> None:
    """Connect a socket for the synchronous ``connect``, which does not bound all that takes.

    It gives each address of a host the whole time, and a look-up as long as it likes. What is
    left of the time is for the handshakes. A proxy's connection is left to the library.

    Raises:
        OSError: no connection, or none in time.
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
    """What the library raises when no connection could be made."""
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
    """Why there is no connection. The library's own words can hold the URL, with its password.

    Raises:
        ConfigurationError: dialling again cannot help.
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
    if isinstance(error, exceptions.InvalidHeader):  # of a 101: InvalidUpgrade is one
        return _not_ours(f"its handshake is wrong: {type(error).__name__}")
    if (problem := network.tls_problem(error)) is not None:
        return Failure(problem, is_permanent=True)
    if isinstance(error, TimeoutError):
        return Failure("did not answer in time")
    if isinstance(error, OSError):
        return Failure(f"could not be reached: {network.reason_of(error)}")
    if isinstance(error, UnicodeError):
        return Failure("could not be reached: no host can have this name")
    return Failure(f"did not answer as a WebSocket server does ({type(error).__name__})")


_OLD_STATUS = re.compile(r"HTTP/1\.0 ([1-5][0-9]{2})(?![0-9])")


def _read_foreign_answer(cause: BaseException | None) -> Failure:
    """What the library could not read as an answer in HTTP/1.1."""
    if isinstance(cause, EOFError):
        return Failure("closed the connection before it answered")
    if (found := _OLD_STATUS.search(str(cause))) is not None:
        return from_http_response(int(found[1]), {}, b"")
    return _not_ours("it does not answer in HTTP/1.1")


def _not_ours(why: str) -> Failure:
    return Failure(f"is not a room server ({why}); check the URL", is_permanent=True)


def read_closed(error: Any) -> Failure:
    """Why a connection ended, from the library's ``ConnectionClosed``."""
    if error.rcvd is not None:
        return from_close_frame(error.rcvd.code, error.rcvd.reason)
    if error.sent is not None:  # the library gave up: too large a message, not UTF-8, no frames
        return from_close_frame(1006, f"what it sent could not be read ({error.sent.code})")
    return from_close_frame(1006, "")
