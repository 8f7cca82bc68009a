"""Subscriptions that share one connection, without I/O: rooms come and go while it is open.

:meth:`SharedConnection.run` is a generator of steps, as :func:`one_room.run` is. It does not wait
for a consumer: what a subscription receives is queued for its consumer, and the rooms of a consumer
that is slow are left until the queue is shorter. So it slows no other subscription.

See PROTOCOL.md, "Many rooms on one connection" and "Clients".
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..endpoint import ServerUrl
from ..errors import SubscriptionError
from ..protocol.control import (
    ERROR,
    MAX_ROOMS,
    SUBPROTOCOL_V2,
    SUBSCRIBED,
    UNSUBSCRIBED,
    ControlFrame,
)
from ..protocol.rooms import Room
from .options import SubscriptionState, Token, base_address
from .receiving import Content, Handling, receive, seconds
from .reconnect import (
    Failure,
    ReconnectPolicy,
    explain_expiry,
    from_close_frame,
    from_http_response,
)
from .shared_keepalive import SharedKeepalive
from .shared_subscription import Queued, RoomStatus, SharedRoom, SharedSubscription
from .steps import Connect, Disconnect, Sleep, StartKeepalive, Steps

logger = logging.getLogger("synap_realtime.subscriber")

HOLD_S = 1.0
"""How long a connection with one consumer is not read before rooms of a slow one are left."""

HOLD_STEP_S = 0.02

_NO_SUCH_ROUTE = (404, 405, 426)

_REFUSED_STATUSES = {"unauthorized": 401, "forbidden": 403, "rate_limited": 429, "unavailable": 503}
"""The status that a connection with one room would have been rejected with."""


def _lacks_many_rooms(failure: Failure) -> bool:
    """Return whether a rejected handshake may mean that the server has no such connections.

    A server answers a path that it does not know with 404, 405 or, by several frameworks, 403. Any
    other final answer is repeated to a connection with one room.
    """
    return failure.status is not None and failure.is_final and failure.status != 401


class ConnectionOptions(NamedTuple):
    """What the subscriptions of one connection have in common."""

    address: ServerUrl
    token: Token

    @property
    def subprotocol(self) -> str:
        return SUBPROTOCOL_V2

    def uri(self, after: str | None, *, with_token: bool) -> str:  # noqa: ARG002 - of each room
        """The WebSocket's address; see :meth:`RoomOptions.uri`."""
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
        self._subscriptions: dict[SharedSubscription, None] = {}  # in the order of their arrival
        self._rooms: dict[Room, SharedRoom] = {}  # those of all subscriptions
        self._retry_at: dict[SharedRoom, float] = {}
        self._keepalive: SharedKeepalive | None = None  # while connected
        # The client has left the rooms, and the server may not have processed that yet.
        self._leaving: dict[Room, int] = {}
        self._has_due = False

    # ---- for the consumers

    @property
    def is_empty(self) -> bool:
        return not self._subscriptions

    def can_add(self, room: Room) -> bool:
        """Return whether there is a place for a subscription to a room."""
        return room not in self._rooms and len(self._rooms) < MAX_ROOMS

    def add(self, subscription: SharedSubscription) -> None:
        """Subscribe, now or as soon as there is a connection."""
        self._subscriptions[subscription] = None
        self._rooms.update({room.name: room for room in subscription.rooms})
        self._connect(subscription)

    def remove(self, subscription: SharedSubscription) -> None:
        """Unsubscribe. A subscription that has ended already is ignored."""
        if subscription in self._subscriptions:
            del self._subscriptions[subscription]
            for room in subscription.rooms:
                del self._rooms[room.name]
                self._retry_at.pop(room, None)
                self._leave(room)

    def on_processed(self, subscription: SharedSubscription, item: Queued) -> None:
        """Acknowledge an item of a subscription, and continue rooms that were left."""
        subscription.on_processed(item)
        if subscription not in self._subscriptions:
            return
        if item.room is not None:
            if item.cursor is not None:
                item.room.progress.received = item.cursor
            self._acknowledge(item.room)
        if subscription.paused and subscription.has_caught_up:
            for room in subscription.paused:
                room.status = RoomStatus.WAITING
                self._begin(room)
            subscription.paused.clear()

    def take_due(self) -> bool:
        """Return whether the keepalive has to be woken, once for each reason."""
        has_due, self._has_due = self._has_due, False
        return has_due

    def end(self, error: Exception | None) -> None:
        """End all subscriptions: see :meth:`SharedSubscription.end`."""
        for subscription in tuple(self._subscriptions):
            self._end(subscription, error)

    # ---- the connection

    def run(self) -> Steps:
        """Connect, receive and reconnect until there is no subscription left."""
        while self._subscriptions:
            answer = yield Connect(None)
            up_s = 0.0
            if isinstance(answer, Failure):
                failure = explain_expiry(answer, is_renewable=callable(self.options.token))
                if _lacks_many_rooms(failure):
                    self.was_refused = failure.status in _NO_SUCH_ROUTE
                    return self.end(None)
            elif answer != SUBPROTOCOL_V2:
                yield Disconnect()
                self.was_refused = True
                return self.end(None)
            else:
                start = self._clock()
                keepalive = self._keepalive = SharedKeepalive(self._clock)
                for subscription in self._subscriptions:
                    self._connect(subscription)
                yield StartKeepalive(keepalive)
                failure = yield from receive(
                    keepalive, self._clock, self._handle, do_planned=self._retry_rooms
                )
                up_s = self._clock() - start
                self._keepalive = None
                self._leaving.clear()
                self._retry_at.clear()
                yield Disconnect()
            yield Sleep(self._reconnect_after(failure, up_s))
        return None

    def _reconnect_after(self, failure: Failure, up_s: float) -> float:
        shown = self.options.address.named
        for subscription in tuple(self._subscriptions):
            try:
                subscription.fail(failure, up_s, shown)
            except SubscriptionError as error:
                self._end(subscription, error)
        if not self._subscriptions:
            return 0.0
        delay_s = self._policy.delay_after(failure, up_s, shown)
        logger.info("%s; reconnecting in %.1f s", failure.reason, delay_s)
        for subscription in self._subscriptions:
            count = subscription.policy.count
            state = SubscriptionState("reconnecting", count, delay_s, failure.reason)
            subscription.put_state(state)
        return delay_s

    def _connect(self, subscription: SharedSubscription) -> None:
        """Subscribe to the rooms of a subscription, and report that it is connected."""
        if self._keepalive is not None:
            subscription.put_state(SubscriptionState("connected"))
            for room in subscription.rooms:
                self._begin(room)

    def _retry_rooms(self) -> float:
        """Subscribe again to the rooms whose time has come. Return seconds until the next one."""
        if not self._retry_at:
            return math.inf
        now = self._clock()
        for room in [room for room, at in self._retry_at.items() if at <= now]:
            del self._retry_at[room]
            room.subscription.put_room_state(SubscriptionState("connected"))
            self._begin(room)
        return min((at - now for at in self._retry_at.values()), default=math.inf)

    # ---- what the server sends

    def _handle(self, content: Content, size: int) -> Handling:
        if isinstance(content, ControlFrame):
            self._control(content)
            return
        room = self._current(content.room)
        if room is not None and room.subscription.is_behind:
            yield from self._hold(room.subscription)
            room = self._current(content.room)
        if room is None:
            return
        if room.subscription.is_behind:
            self._pause(room)
            return
        room.progress.move_to(content.cursor)
        if room.progress.is_new(content):
            room.put(content, size)
        else:
            room.put(None)
        if (pause_s := room.subscription.pause_s) is not None:
            yield Sleep(pause_s)

    def _hold(self, subscription: SharedSubscription) -> Handling:
        """Let a consumer catch up, for a moment and if no other one waits meanwhile.

        A subscription to many rooms would otherwise leave them and come back several times a
        second.
        """
        end = self._clock() + HOLD_S
        while (
            len(self._subscriptions) == 1
            and not (subscription.has_caught_up or subscription.paused)
            and self._clock() < end
        ):
            yield Sleep(HOLD_STEP_S)

    def _pause(self, room: SharedRoom) -> None:
        """Leave a room until its consumer has caught up, and then continue at its position."""
        self._leave(room)
        room.status = RoomStatus.PAUSED
        room.since = None
        room.subscription.paused.append(room)
        if room.progress.pause():
            room.put_gap()

    def _current(self, name: object) -> SharedRoom | None:
        """Return the room that a message is for; None if it was left in the meantime."""
        room = self._rooms.get(Room(name)) if isinstance(name, str) else None
        if room is None or room.status is not RoomStatus.SUBSCRIBED or room.name in self._leaving:
            return None
        return room

    def _control(self, frame: ControlFrame) -> None:
        name, code = frame.data.get("room"), frame.data.get("code")
        if not isinstance(name, str):
            return
        if frame.type == UNSUBSCRIBED and code is None:
            self._left(Room(name))
            return
        if frame.type == ERROR and code == "not_subscribed":
            if frame.data.get("action") == "unsubscribe":
                self._left(Room(name))
            return
        room = self._current(name)
        if room is None:
            return
        if frame.type == SUBSCRIBED:
            self._subscribed(room, frame)
        elif frame.type == UNSUBSCRIBED and isinstance(code, int):
            failure = from_close_frame(code, str(frame.data.get("reason", "")))
            self._retry_later(room, failure, frame.data.get("reconnectAfterMs"))
        elif frame.type == ERROR and code != "already_subscribed":
            status = _REFUSED_STATUSES.get(str(code), 400)
            error = {"error": str(code).capitalize(), "details": frame.data.get("details")}
            failure = from_http_response(status, {}, json.dumps(error).encode())
            self._retry_later(room, failure, frame.data.get("retryAfterMs"))

    def _subscribed(self, room: SharedRoom, frame: ControlFrame) -> None:
        room.since = self._clock()
        progress, received = room.progress, room.progress.received
        if progress.subscribed(frame):
            progress.received = received  # until the consumer has processed the gap
            room.put_gap(progress.cursor)
        if self._keepalive is not None:  # what was sent before has had no effect
            self._keepalive.enter(room.name)
        self._acknowledge(room)

    def _retry_later(self, room: SharedRoom, failure: Failure, after_ms: object) -> None:
        """Subscribe to one room again later; end its subscription if that cannot help."""
        if self._keepalive is not None:
            self._keepalive.forget(room.name)
        up_s = 0.0 if room.since is None else self._clock() - room.since
        failure = replace(failure, retry_after_s=seconds(after_ms))
        shown = f"{self.options.address.named}: {room.name}"
        try:
            delay_s = room.policy.delay_after(failure, up_s, shown)
        except SubscriptionError as error:
            room.status = RoomStatus.WAITING  # there is nothing to leave
            self._end(room.subscription, error)
            return
        room.lose()
        self._retry_at[room] = self._clock() + delay_s
        logger.info("%s; subscribing again in %.1f s", failure.reason, delay_s)
        state = SubscriptionState("reconnecting", room.policy.count, delay_s, failure.reason)
        room.subscription.put_room_state(state)

    # ---- what the client sends

    def _end(self, subscription: SharedSubscription, error: Exception | None) -> None:
        self.remove(subscription)
        subscription.end(error)

    def _begin(self, room: SharedRoom) -> None:
        """Subscribe to a room, if there is a connection. A room that is paused waits."""
        if self._keepalive is None or room.status is RoomStatus.PAUSED:
            return
        room.status = RoomStatus.SUBSCRIBED
        room.progress.connected(speaks_v1=True)
        self._keepalive.enter(room.name)
        self._keepalive.act("subscribe", room.name, after=room.progress.after or None)
        self._has_due = True

    def _leave(self, room: SharedRoom) -> None:
        """Unsubscribe from a room, if it is subscribed."""
        if self._keepalive is not None and room.status is RoomStatus.SUBSCRIBED:
            self._keepalive.leave(room.name)
            self._has_due = True
            self._leaving[room.name] = self._leaving.get(room.name, 0) + 1

    def _left(self, room: Room) -> None:
        """Note that the server has processed that the client has left a room."""
        if (count := self._leaving.pop(room, 0)) > 1:
            self._leaving[room] = count - 1

    def _acknowledge(self, room: SharedRoom) -> None:
        if self._keepalive is not None and room.subscription.options.acknowledge:
            received = room.progress.received
            self._has_due |= self._keepalive.acknowledge_in(room.name, received)
