"""Subscriptions that share one connection, without I/O: rooms come and go while it is open.

:meth:`SharedConnection.run` is a generator of steps for both drivers, as :func:`core.run` is. It
does not wait for a consumer: what a room receives is queued for its consumer, and a room whose
consumer is slow is left until the queue is shorter. So it slows no other room.

See PROTOCOL.md, "Many rooms on one connection" and "Clients".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import NamedTuple

from ..endpoint import ServerUrl
from ..errors import SubscriptionError
from ..protocol.control import (
    CLOSING,
    ERROR,
    MAX_ROOMS,
    PONG,
    PONG_TIMEOUT_S,
    SUBPROTOCOL_V2,
    SUBSCRIBED,
    TOKEN_EXPIRING,
    UNSUBSCRIBED,
    ControlFrame,
)
from ..protocol.notification import Notification
from ..protocol.rooms import Room
from .core import (
    Connect,
    Disconnect,
    EffectResult,
    Receive,
    RenewToken,
    Sleep,
    StartKeepalive,
    Step,
    Steps,
    authentication,
    explain_expiry,
    read,
    seconds,
)
from .options import SubscriptionState, Token, base_address
from .reconnect import Failure, ReconnectPolicy, from_close_frame, from_http_response
from .rooms import NO_SUCH_ROUTE, REFUSED_STATUSES, lacks_many_rooms
from .shared_keepalive import SharedKeepalive
from .shared_subscription import Queued, SharedSubscription

logger = logging.getLogger("synap_realtime.subscriber")


class ConnectionOptions(NamedTuple):
    """What the subscriptions of one connection have in common."""

    address: ServerUrl
    token: Token

    @property
    def subprotocol(self) -> str:
        return SUBPROTOCOL_V2

    def uri(self, after: str | None, *, with_token: bool) -> str:  # noqa: ARG002 - of each room
        """The WebSocket's address; see :meth:`Options.uri`."""
        return f"{base_address(self.address, with_token=with_token)}/subscribe"


class SharedConnection:
    """One connection, and the subscriptions that share it.

    Its methods change only what is here, and queue what is to be sent: see :meth:`take_due`. With
    threads, each call and each step of the generator needs the same lock.

    Attributes:
        options: what the subscriptions have in common.
        was_refused: whether the server has no connections with many rooms.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self.options = options
        self.was_refused = False
        self._clock = clock
        self._policy = ReconnectPolicy(None, random)
        self._members: dict[Room, SharedSubscription] = {}
        self._keepalive: SharedKeepalive | None = None  # while connected
        # The client has left the rooms, and the server may not have processed that yet.
        self._leaving: dict[Room, int] = {}
        self._has_due = False

    # ---- for the consumers

    @property
    def is_empty(self) -> bool:
        return not self._members

    def can_add(self, room: Room) -> bool:
        """Return whether there is a place for a subscription to a room."""
        return room not in self._members and len(self._members) < MAX_ROOMS

    def add(self, member: SharedSubscription) -> None:
        """Subscribe, now or as soon as there is a connection."""
        self._members[member.room] = member
        self._connect(member)

    def remove(self, member: SharedSubscription) -> None:
        """Unsubscribe. A subscription that has ended already is ignored."""
        if self._members.get(member.room) is member:
            del self._members[member.room]
            self._leave(member)

    def on_processed(self, member: SharedSubscription, item: Queued) -> None:
        """Acknowledge an item of a subscription, and continue one that was left."""
        member.on_processed(item)
        if self._members.get(member.room) is not member:
            return
        if item.cursor is not None:
            member.progress.received = item.cursor
        if self._keepalive is not None and not member.is_paused:
            self._acknowledge(member)
        if member.is_paused and member.has_caught_up:
            member.is_paused = False
            self._begin(member)

    def take_due(self) -> bool:
        """Return whether the keepalive has to be woken, once for each reason."""
        has_due, self._has_due = self._has_due, False
        return has_due

    def end(self, error: Exception | None) -> None:
        """End all subscriptions: see :meth:`SharedSubscription.end`."""
        members, self._members = self._members, {}
        for member in members.values():
            member.end(error)

    # ---- the connection

    def run(self) -> Steps:
        """Connect, receive and reconnect until there is no subscription left."""
        while self._members:
            answer = yield Connect(None)
            up_s = 0.0
            if isinstance(answer, Failure):
                failure = explain_expiry(answer, self.options.token)
                if lacks_many_rooms(failure):
                    self.was_refused = failure.status in NO_SUCH_ROUTE
                    return self.end(None)
            elif answer != SUBPROTOCOL_V2:
                yield Disconnect()
                self.was_refused = True
                return self.end(None)
            else:
                start = self._clock()
                keepalive = self._keepalive = SharedKeepalive(self._clock)
                for member in self._members.values():
                    self._connect(member)
                yield StartKeepalive(keepalive)
                failure = yield from self._receive(keepalive)
                up_s = self._clock() - start
                self._keepalive = None
                self._leaving.clear()
                yield Disconnect()
            yield Sleep(self._reconnect_after(failure, up_s))
        return None

    def _reconnect_after(self, failure: Failure, up_s: float) -> float:
        shown = self.options.address.named
        for member in tuple(self._members.values()):
            member.retry_at = None
            try:
                member.fail(failure, up_s, shown)
            except SubscriptionError as error:
                self._end(member, error)
        if not self._members:
            return 0.0
        delay_s = self._policy.delay_after(failure, up_s, shown)
        logger.info("%s; reconnecting in %.1f s", failure.reason, delay_s)
        for member in self._members.values():
            count = member.policy.count
            member.notify_state(SubscriptionState("reconnecting", count, delay_s, failure.reason))
        return delay_s

    def _receive(self, keepalive: SharedKeepalive) -> Generator[Step, EffectResult, Failure]:
        """Receive on one connection until it fails; return the failure."""
        asked_s: float | None = None
        while True:
            since = self._clock()
            message = yield Receive(self._timeout_s(keepalive))
            keepalive.waited(since)
            if isinstance(message, Failure):
                return replace(message, retry_after_s=asked_s)
            if message == PONG:
                keepalive.pong()
            elif message is not None:
                content = read(message)
                if isinstance(content, Notification):
                    pause_s = self._deliver(content, len(message))
                    if pause_s is not None:
                        yield Sleep(pause_s)
                elif isinstance(content, ControlFrame):
                    if content.type == CLOSING:
                        asked_s = seconds(content.data.get("reconnectAfterMs"))
                    elif content.type == TOKEN_EXPIRING and "room" not in content.data:
                        token = yield RenewToken()
                        if isinstance(token, str):
                            keepalive.send(authentication(token))
                            self._has_due = True
                    else:
                        self._control(content)
            for member in tuple(self._members.values()):
                if member.retry_at is not None and member.retry_at <= self._clock():
                    self._connect(member)
            if keepalive.is_dead:
                return Failure(f"no pong within {PONG_TIMEOUT_S:g} s", retry_after_s=asked_s)

    def _timeout_s(self, keepalive: SharedKeepalive) -> float:
        now = self._clock()
        retries = [at for m in self._members.values() if (at := m.retry_at) is not None]
        return min([keepalive.receive_timeout_s(), *(max(0.0, at - now) for at in retries)])

    def _deliver(self, notification: Notification, size: int) -> float | None:
        """Queue a notification. Return :attr:`SharedSubscription.pause_s`."""
        member = self._current(notification.room)
        if member is None:
            return None
        member.progress.move_to(notification.cursor)
        if member.progress.is_new(notification):
            member.put(notification, size)
        else:
            member.put(None)
        if member.is_behind:
            member.is_paused = True
            self._leave(member)
            if member.progress.pause():
                member.notify_gap()
        return None if member.is_paused else member.pause_s

    def _current(self, room: object) -> SharedSubscription | None:
        """Return the subscription that a message is for; None if it was left in the meantime."""
        member = self._members.get(Room(room)) if isinstance(room, str) else None
        return None if member is None or member.room in self._leaving else member

    def _control(self, frame: ControlFrame) -> None:
        room, code = frame.data.get("room"), frame.data.get("code")
        if not isinstance(room, str):
            return
        if frame.type == UNSUBSCRIBED and code is None:
            self._left(Room(room))
            return
        if frame.type == ERROR and code == "not_subscribed":
            if frame.data.get("action") == "unsubscribe":
                self._left(Room(room))
            return
        member = self._current(room)
        if member is None or member.is_paused:
            return
        if frame.type == SUBSCRIBED:
            member.since = self._clock()
            progress, received = member.progress, member.progress.received
            if progress.subscribed(frame):
                progress.received = received  # until the consumer has processed the gap
                member.notify_gap(progress.cursor)
            if self._keepalive is not None:  # what was sent before has had no effect
                self._keepalive.enter(member.room)
            self._acknowledge(member)
        elif frame.type == UNSUBSCRIBED and isinstance(code, int):
            failure = from_close_frame(code, str(frame.data.get("reason", "")))
            self._retry(member, failure, frame.data.get("reconnectAfterMs"))
        elif frame.type == ERROR and code != "already_subscribed":
            status = REFUSED_STATUSES.get(str(code), 400)
            error = {"error": str(code).capitalize(), "details": frame.data.get("details")}
            failure = from_http_response(status, {}, json.dumps(error).encode())
            self._retry(member, failure, frame.data.get("retryAfterMs"))

    def _retry(self, member: SharedSubscription, failure: Failure, after_ms: object) -> None:
        """Subscribe to one room again later."""
        if self._keepalive is not None:
            self._keepalive.forget(member.room)
        up_s = 0.0 if member.since is None else self._clock() - member.since
        failure = replace(failure, retry_after_s=seconds(after_ms))
        shown = f"{self.options.address.named}: {member.room}"
        try:
            delay_s = member.fail(failure, up_s, shown)
        except SubscriptionError as error:
            self._end(member, error)
            return
        member.retry_at = self._clock() + delay_s
        count = member.policy.count
        member.notify_state(SubscriptionState("reconnecting", count, delay_s, failure.reason))
        logger.info("%s; subscribing again in %.1f s", failure.reason, delay_s)

    def _end(self, member: SharedSubscription, error: SubscriptionError) -> None:
        del self._members[member.room]
        member.end(error)

    def _connect(self, member: SharedSubscription) -> None:
        """Subscribe to a room, and report that it is connected."""
        member.retry_at = None
        if self._keepalive is not None:
            member.notify_state(SubscriptionState("connected"))
            if not member.is_paused:
                self._begin(member)

    def _begin(self, member: SharedSubscription) -> None:
        """Subscribe to a room, if there is a connection."""
        if self._keepalive is None:
            return
        member.progress.connected(speaks_v1=True)
        self._keepalive.enter(member.room)
        self._keepalive.act("subscribe", member.room, after=member.progress.after or None)
        self._has_due = True

    def _leave(self, member: SharedSubscription) -> None:
        """Unsubscribe from a room, if there is a connection."""
        if self._keepalive is not None:
            self._keepalive.leave(member.room)
            self._has_due = True
            self._leaving[member.room] = self._leaving.get(member.room, 0) + 1

    def _left(self, room: Room) -> None:
        """Note that the server has processed that the client has left a room."""
        if (count := self._leaving.pop(room, 0)) > 1:
            self._leaving[room] = count - 1

    def _acknowledge(self, member: SharedSubscription) -> None:
        if self._keepalive is not None and member.options.acknowledge:
            received = member.progress.received
            self._has_due |= self._keepalive.acknowledge_in(member.room, received)
