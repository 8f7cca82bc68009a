"""What both shells tell the library ``websockets``, and how its errors read.

It is imported only when someone dials, so that publishers need not have it.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any

from ..endpoint import bearer
from ..errors import ConfigurationError
from ..protocol.control import SUBPROTOCOL
from .options import Options
from .reconnect import Failure, closed, refused

MAX_MESSAGE_BYTES = 1024 * 1024
"""Four times the largest notification: some servers write JSON with escapes."""

_library_logger = logging.getLogger("synap_realtime.subscriber.websockets")
_library_logger.setLevel(logging.INFO)  # at DEBUG it would write down the token

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
        raise ConfigurationError(
            f"listening needs websockets 15 or newer ({error}): "
            "pip install 'synap-realtime[subscriber]'"
        ) from None


def dial_arguments(options: Options, after: str | None, token: str | None) -> dict[str, Any]:
    """The arguments of both ``connect``, the asynchronous and the synchronous.

    Raises:
        ConfigurationError: no header can carry the token.
    """
    return {
        "uri": options.uri(after, with_token=bool(token)),
        "subprotocols": [SUBPROTOCOL],
        "additional_headers": {"Authorization": bearer("token", token)} if token else None,
        "proxy": None if options.address.is_loopback else True,
        "compression": None,
        "open_timeout": OPEN_TIMEOUT_S,
        "close_timeout": CLOSE_TIMEOUT_S,
        "ping_interval": None,  # the contract's own pings, which also say that we listen
        "logger": _library_logger,
        "max_size": MAX_MESSAGE_BYTES,
        "max_queue": 16,  # messages that wait for a slow consumer; more wait in the network
    }


def dial_errors() -> tuple[type[Exception], ...]:
    """What the library raises when no connection could be made."""
    exceptions = library("exceptions")
    return (OSError, UnicodeError, ImportError, ValueError, exceptions.WebSocketException)


def read_dial_error(error: Exception) -> Failure:
    """Why there is no connection. The library's own words can hold the URL, with its password.

    Raises:
        ConfigurationError: dialling again cannot help.
    """
    exceptions = library("exceptions")
    if isinstance(error, exceptions.InvalidStatus):
        response = error.response
        return refused(response.status_code, response.headers, bytes(response.body or b""))
    if isinstance(error, ImportError | exceptions.InvalidProxy):
        raise ConfigurationError(
            "the environment's proxy cannot be used; a SOCKS proxy needs: pip install python-socks"
        ) from None
    if isinstance(error, TimeoutError):
        return Failure("did not answer in time")
    if isinstance(error, OSError):
        return Failure(f"could not be reached: {error.strerror or str(error) or 'lost'}")
    if isinstance(error, UnicodeError):
        return Failure("could not be reached: no host can have this name")
    return Failure(f"did not answer as a WebSocket server does ({type(error).__name__})")


def read_closed(error: Any) -> Failure:
    """Why a connection ended, from the library's ``ConnectionClosed``."""
    if error.rcvd is not None:
        return closed(error.rcvd.code, error.rcvd.reason)
    if error.sent is not None:  # the library gave up: too large a message, not UTF-8, no frames
        return closed(1006, f"what it sent could not be read ({error.sent.code})")
    return closed(1006, "")
