"""The lifecycle of a subscription to many rooms over one connection, without I/O.

Like :func:`core.run`, :func:`run` is a generator of steps for both drivers. Each room has its own
position, and is subscribed again by itself if only its subscription has ended.

See PROTOCOL.md, "Many rooms on one connection" and "Clients".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace

from ..protocol.control import (
    CLOSING,
    ERROR,
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
    Deliver,
    Disconnect,
    EffectResult,
    Notify,
    Receive,
    RenewToken,
    RoomProgress,
    Send,
    Sleep,
    StartKeepalive,
    Step,
    Steps,
    WakeKeepalive,
    authentication,
    explain_expiry,
    read,
    seconds,
)
from .keepalive import Keepalive
from .options import RoomsOptions, SubscriptionState
from .reconnect import Failure, ReconnectPolicy, from_close_frame

logger = logging.getLogger("synap_realtime.subscriber")

NO_SUCH_ROUTE = (404, 405, 426)

REFUSED_STATUSES = {"unauthorized": 401, "forbidden": 403, "rate_limited": 429, "unavailable": 503}
"""The status that a connection with one room would have been rejected with."""

_IGNORED = ("already_subscribed", "not_subscribed")


def lacks_many_rooms(failure: Failure) -> bool:
    """Return whether a rejected handshake may mean that the server has no such connections.

    A server answers a path that it does not know with 404, 405 or, by several frameworks, 403. Any
    other final answer is repeated to a connection with one room.
    """
    return failure.status is not None and failure.is_final and failure.status != 401


class OneRoomOnlyError(Exception):
    """The server has no connections with many rooms: use one for each.

    Attributes:
        positions: where each room continues.
        token: the token of the function that was not used; None if there is none.
    """

    def __init__(self, positions: dict[Room, str | None], token: str | None = None) -> None:
        super().__init__()
        self.positions = positions
        self.token = token


class RoomsKeepalive(Keepalive):
    """The timers of a connection with many rooms, each with its own acknowledgement."""

    def __init__(
        self, clock: Callable[[], float], rooms: Iterable[Room], *, acknowledges: bool
    ) -> None:
        super().__init__(clock, acknowledges=acknowledges)
        # All keys are there from the start, so that one thread can iterate while another writes.
        self._received_in: dict[Room, str | None] = dict.fromkeys(rooms)  # written by the consumer
        self._acknowledged_in = dict(self._received_in)  # written by the keepalive

    def acknowledge_in(self, room: Room, cursor: str | None) -> bool:
        """Do the same as :meth:`acknowledge`, for one room."""
        if not self._acknowledges or cursor is None or cursor == self._received_in[room]:
            return False
        waits_already = self._has_pending_ack
        self._received_in[room] = cursor
        return not waits_already

    def pending_ack(self) -> list[str]:
        texts = []
        for room, cursor in self._received_in.items():
            if cursor != self._acknowledged_in[room]:
                self._acknowledged_in[room] = cursor
                texts.append(json.dumps({"action": "ack", "room": room, "cursor": cursor}))
        if texts:
            self._ack_again_later()
        return texts

    @property
    def _has_pending_ack(self) -> bool:
        return self._received_in != self._acknowledged_in


class _Room:
    """One room: what outlives a connection, and when it is subscribed again."""

    def __init__(self, room: Room, options: RoomsOptions, random: Callable[[], float]) -> None:
        self.name = room
        self.subscription = RoomProgress(options.of(room))
        self.policy = ReconnectPolicy(options.max_reconnects, random)
        self.retry_at: float | None = None
        self.since: float | None = None  # when it was subscribed

    def subscribe(self) -> Send:
        self.retry_at = None
        self.subscription.connected(speaks_v1=True)
        action = {"action": "subscribe", "room": self.name, "after": self.subscription.after}
        return Send(json.dumps({name: value for name, value in action.items() if value}))


class _Connection:
    """The rooms of one connection."""

    def __init__(
        self, options: RoomsOptions, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        self._options = options
        self._clock = clock
        self.rooms = {room: _Room(room, options, random) for room in options.rooms}

    def run(self, keepalive: RoomsKeepalive) -> Generator[Step, EffectResult, Failure]:
        """Receive on one connection until it fails; return the failure."""
        asked_s: float | None = None
        for room in self.rooms.values():
            yield room.subscribe()
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
                    yield from self._deliver(content, keepalive)
                elif isinstance(content, ControlFrame):
                    if content.type == CLOSING:
                        asked_s = seconds(content.data.get("reconnectAfterMs"))
                    elif content.type == TOKEN_EXPIRING and "room" not in content.data:
                        token = yield RenewToken()
                        if isinstance(token, str):
                            yield Send(authentication(token))
                    yield from self._control(content, keepalive)
            for room in self.rooms.values():
                if room.retry_at is not None and room.retry_at <= self._clock():
                    yield room.subscribe()
            if keepalive.is_dead:
                return Failure(f"no pong within {PONG_TIMEOUT_S:g} s", retry_after_s=asked_s)

    def _timeout_s(self, keepalive: RoomsKeepalive) -> float:
        retries = [room.retry_at for room in self.rooms.values() if room.retry_at is not None]
        timeout_s = keepalive.receive_timeout_s()
        return min([timeout_s, *(max(0.0, at - self._clock()) for at in retries)])

    def _deliver(
        self, notification: Notification, keepalive: RoomsKeepalive
    ) -> Generator[Step, EffectResult, None]:
        room = self.rooms.get(Room(notification.room or ""))
        if room is None:
            return
        subscription = room.subscription
        subscription.move_to(notification.cursor)
        if subscription.is_new(notification):
            yield Deliver(notification)
        # The consumer has requested the next one, so it has processed this one.
        subscription.received = subscription.cursor
        if keepalive.acknowledge_in(room.name, subscription.received):
            yield WakeKeepalive()

    def _control(
        self, frame: ControlFrame, keepalive: RoomsKeepalive
    ) -> Generator[Step, EffectResult, None]:
        name = frame.data.get("room")
        room = self.rooms.get(Room(name)) if isinstance(name, str) else None
        if room is None:
            return
        if frame.type == SUBSCRIBED:
            room.since = self._clock()
            subscription = room.subscription
            has_gap = subscription.subscribed(frame)
            if keepalive.acknowledge_in(room.name, subscription.received):
                yield WakeKeepalive()
            if has_gap:
                yield Notify(self._options.on_gap, room.name)
        elif frame.type == UNSUBSCRIBED and isinstance(code := frame.data.get("code"), int):
            failure = from_close_frame(code, str(frame.data.get("reason", "")))
            yield from self._retry(room, failure, frame.data.get("reconnectAfterMs"))
        elif frame.type == ERROR and (code := frame.data.get("code")) not in _IGNORED:
            details = str(frame.data.get("details", ""))
            status = REFUSED_STATUSES.get(str(code), 400)
            failure = Failure(f"the server refused it: {details}", status=status)
            yield from self._retry(room, failure, frame.data.get("retryAfterMs"))

    def _retry(
        self, room: _Room, failure: Failure, after_ms: object
    ) -> Generator[Step, EffectResult, None]:
        """Subscribe to a room again later.

        Raises:
            SubscriptionError: that cannot help.
        """
        up_s = 0.0 if room.since is None else self._clock() - room.since
        failure = replace(failure, retry_after_s=seconds(after_ms))
        shown = f"{self._options.address.named}: {room.name}"
        delay_s = room.policy.delay_after(failure, up_s, shown)
        room.retry_at = self._clock() + delay_s
        room.since = None
        logger.info("%s; subscribing again in %.1f s", failure.reason, delay_s)
        if room.subscription.lost():
            yield Notify(self._options.on_gap, room.name)


def run(options: RoomsOptions, clock: Callable[[], float], random: Callable[[], float]) -> Steps:
    """Run one subscription to many rooms: connect, receive, reconnect until a permanent failure.

    Raises:
        OneRoomOnlyError: the server has no connections with many rooms.
        SubscriptionError: the server rejected the connection or one of the rooms permanently.
    """
    connection = _Connection(options, clock, random)
    rooms = connection.rooms.values()
    reconnect = ReconnectPolicy(options.max_reconnects, random)
    while True:
        answer = yield Connect(None)
        up_s = 0.0
        if isinstance(answer, Failure):
            failure = explain_expiry(answer, options.token)
            if lacks_many_rooms(failure):
                raise OneRoomOnlyError({each.name: each.subscription.after for each in rooms})
        elif answer != SUBPROTOCOL_V2:
            yield Disconnect()
            raise OneRoomOnlyError({each.name: each.subscription.after for each in rooms})
        else:
            start = clock()
            keepalive = RoomsKeepalive(clock, options.rooms, acknowledges=options.acknowledge)
            yield StartKeepalive(keepalive)
            yield Notify(options.on_state_change, SubscriptionState("connected"))
            failure = yield from connection.run(keepalive)
            up_s = clock() - start
            yield Disconnect()
            for room in rooms:
                room.since = None
                if room.subscription.lost():
                    yield Notify(options.on_gap, room.name)
        delay_s = reconnect.delay_after(failure, up_s, options.address.named)
        logger.info("%s; reconnecting in %.1f s", failure.reason, delay_s)
        state = SubscriptionState("reconnecting", reconnect.count, delay_s, failure.reason)
        yield Notify(options.on_state_change, state)
        yield Sleep(delay_s)
