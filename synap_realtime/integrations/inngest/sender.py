"""Sending a run's notifications to an event's user: a failure is logged, and fails no job."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import inngest

from ...broadcast import (
    AsyncBroadcaster,
    Broadcaster,
    BroadcastResult,
    broadcast_notification,
    broadcast_notification_sync,
)
from ...errors import InvalidArgumentError
from ...protocol.notification import Notification
from ...protocol.rooms import Room, request_room, user_room
from .run import person

logger = logging.getLogger(__name__)


def sender(
    broadcaster: AsyncBroadcaster | None,
) -> Callable[[inngest.Event, Notification], Awaitable[None]]:
    """How async functions tell an event's user; by default the server of ``REALTIME_URL``."""
    publish = broadcast_notification if broadcaster is None else broadcaster.broadcast_notification

    async def send(event: inngest.Event, notification: Notification) -> None:
        user_id, request_id = _addressee(event, notification)
        if user_id is None and request_id is None:
            return
        try:
            result = await publish(user_id=user_id, request_id=request_id, message=notification)
        except InvalidArgumentError as error:  # the ids were checked: it is the data
            smaller = _without_data(notification, error)
            result = await publish(user_id=user_id, request_id=request_id, message=smaller)
        _log(notification, result)

    return send


def sender_sync(
    broadcaster: Broadcaster | None,
) -> Callable[[inngest.Event, Notification], None]:
    """:func:`sender` for functions that do not await."""
    publish = (
        broadcast_notification_sync if broadcaster is None else broadcaster.broadcast_notification
    )

    def send(event: inngest.Event, notification: Notification) -> None:
        user_id, request_id = _addressee(event, notification)
        if user_id is None and request_id is None:
            return
        try:
            result = publish(user_id=user_id, request_id=request_id, message=notification)
        except InvalidArgumentError as error:  # the ids were checked: it is the data
            smaller = _without_data(notification, error)
            result = publish(user_id=user_id, request_id=request_id, message=smaller)
        _log(notification, result)

    return send


def _addressee(event: inngest.Event, notification: Notification) -> tuple[str | None, str | None]:
    user_id, request_id = person(event)
    if user_id is None:
        _log_addressee(event, notification, "it names no user (data.userId)")
    return (
        _checked(user_room, user_id, event, notification),
        _checked(request_room, request_id, event, notification),
    )


def _checked(
    room_of: Callable[[str], Room], key: str | None, event: inngest.Event, told: Notification
) -> str | None:
    """An id that can be part of a room's; the other addressee is told all the same."""
    if key is None:
        return None
    try:
        room_of(key)
    except InvalidArgumentError as error:
        _log_addressee(event, told, str(error))
        return None
    return key


def _log_addressee(event: inngest.Event, told: Notification, problem: str) -> None:
    logger.warning("event %s, notification %s: %s", event.name, told.id, problem)


def _without_data(notification: Notification, error: InvalidArgumentError) -> Notification:
    """The same news without its payload, for one that is too large."""
    logger.warning("notification %s is sent without its data: %s", notification.id, error)
    return notification.model_copy(update={"data": {"truncated": True}})


def _log(notification: Notification, result: BroadcastResult) -> None:
    if not result.success:
        logger.warning("notification %s was not sent: %s", notification.id, result.error)
