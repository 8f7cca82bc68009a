"""The SDK as plain functions over one shared client for each server and key."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from pydantic import BaseModel

from ..endpoint import DEFAULT_URL
from ..errors import ConfigurationError
from ..protocol.notification import Notification
from ..protocol.rooms import UserId
from .aio import AsyncBroadcaster
from .background import BackgroundBroadcaster
from .result import BroadcastResult
from .sync import Broadcaster


async def broadcast_notification(
    *,
    user_id: UserId | None = None,
    request_id: UserId | None = None,
    message: Notification | Mapping[str, Any],
) -> BroadcastResult:
    """Publish one notification to a user's room, a request's room, or both.

    The server is ``REALTIME_URL``, the key ``REALTIME_API_KEY``. Connections stay open until the
    event loop is closed. Delivery never raises: check ``result.success``.

    Raises:
        InvalidArgumentError: an argument is invalid; names it.
        ConfigurationError: ``REALTIME_URL`` is not an http or https URL.
    """
    return await _shared(*_environment()).broadcast_notification(
        user_id=user_id, request_id=request_id, message=message
    )


async def broadcast_success(
    user_id: UserId | None,
    type: str,
    data: Mapping[str, Any] | BaseModel,
    request_id: UserId | None = None,
    *,
    id: str | None = None,
) -> BroadcastResult:
    """Publish a notification with ``status: "success"``; see :func:`broadcast_notification`."""
    return await _shared(*_environment()).broadcast_success(user_id, type, data, request_id, id=id)


async def broadcast_error(
    user_id: UserId | None,
    type: str,
    error: str,
    request_id: UserId | None = None,
    *,
    id: str | None = None,
) -> BroadcastResult:
    """Publish a notification with ``status: "error"``; see :func:`broadcast_notification`."""
    return await _shared(*_environment()).broadcast_error(user_id, type, error, request_id, id=id)


def broadcast_notification_sync(
    *,
    user_id: UserId | None = None,
    request_id: UserId | None = None,
    message: Notification | Mapping[str, Any],
) -> BroadcastResult:
    """Synchronous variant of :func:`broadcast_notification`."""
    return _shared_sync(*_environment()).broadcast_notification(
        user_id=user_id, request_id=request_id, message=message
    )


def broadcast_success_sync(
    user_id: UserId | None,
    type: str,
    data: Mapping[str, Any] | BaseModel,
    request_id: UserId | None = None,
    *,
    id: str | None = None,
) -> BroadcastResult:
    """Synchronous variant of :func:`broadcast_success`."""
    return _shared_sync(*_environment()).broadcast_success(user_id, type, data, request_id, id=id)


def broadcast_error_sync(
    user_id: UserId | None,
    type: str,
    error: str,
    request_id: UserId | None = None,
    *,
    id: str | None = None,
) -> BroadcastResult:
    """Synchronous variant of :func:`broadcast_error`."""
    return _shared_sync(*_environment()).broadcast_error(user_id, type, error, request_id, id=id)


def _environment() -> tuple[str | None, str | None]:
    return os.environ.get("REALTIME_URL"), os.environ.get("REALTIME_API_KEY")


_transport: Any = None


@contextmanager
def use_transport(transport: Any) -> Iterator[None]:
    """Make all shared clients use this transport (asynchronous and synchronous), for tests."""
    global _transport
    before = _transport
    _reset_shared()
    _transport = transport
    try:
        yield
    finally:
        _reset_shared()
        _transport = before


def _reset_shared() -> None:
    if _shared_background.cache_info().currsize:
        background_broadcaster().close()
    for cache in (_shared, _shared_sync, _shared_background):
        cache.cache_clear()


# Replaced when the environment changes. The clients read it themselves, so that an error names the
# variable.
@functools.lru_cache(maxsize=8)
def _shared(*_environment: str | None) -> AsyncBroadcaster:
    return AsyncBroadcaster(transport=_transport)


@functools.lru_cache(maxsize=8)
def _shared_sync(*_environment: str | None) -> Broadcaster:
    broadcaster = Broadcaster(transport=_transport)
    atexit.register(broadcaster.close)
    return broadcaster


def background_broadcaster() -> BackgroundBroadcaster:
    """Return the client of ``REALTIME_URL`` and ``REALTIME_API_KEY`` that all jobs of the process
    share.

    Invalid values of these variables do not stop a job: nothing is sent, and one log line states
    the reason.
    """
    return _shared_background(*_environment())


@functools.lru_cache(maxsize=8)
def _shared_background(*_environment: str | None) -> BackgroundBroadcaster:
    try:
        return BackgroundBroadcaster(transport=_transport)
    except ConfigurationError as error:
        return BackgroundBroadcaster(DEFAULT_URL, "none", transport=_Refusing(error))


class _Refusing(httpx.BaseTransport):
    """Rejects each request with the configuration error."""

    def __init__(self, error: ConfigurationError) -> None:
        self._error = error

    def handle_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002
        raise self._error
