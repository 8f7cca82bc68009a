"""The lifecycle of a subscription to one room by a connection of its own, without I/O.

A server without connections with many rooms is subscribed to in this way.

See PROTOCOL.md, "Subscribing" and "Clients".
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..protocol.control import SUBPROTOCOL, SUBSCRIBED
from ..protocol.notification import Notification
from .keepalive import Keepalive
from .options import RoomOptions, SubscriptionState
from .progress import RoomProgress
from .receiving import Content, Handling, receive
from .reconnect import Failure, ReconnectPolicy, explain_expiry
from .steps import Connect, Deliver, Disconnect, Notify, Sleep, StartKeepalive, Steps, WakeKeepalive

logger = logging.getLogger("synap_realtime.subscriber")


def run(options: RoomOptions, clock: Callable[[], float], random: Callable[[], float]) -> Steps:
    """Run one subscription: connect, receive, and reconnect until a permanent failure."""
    common = options.common
    progress = RoomProgress(options.after)
    reconnect = ReconnectPolicy(common.max_reconnects, random)
    while True:
        answer = yield Connect(progress.after)
        up_s = 0.0
        if isinstance(answer, Failure):
            failure = explain_expiry(answer, is_renewable=callable(options.token))
        else:
            start = clock()
            speaks_v1 = answer == SUBPROTOCOL
            progress.connected(speaks_v1=speaks_v1)
            keepalive = Keepalive(clock, acknowledges=speaks_v1 and common.acknowledge)
            yield StartKeepalive(keepalive)
            yield Notify(common.on_state_change, SubscriptionState("connected"))
            handle = _Handler(options, progress, keepalive)
            failure = yield from receive(keepalive, clock, handle, reads_control=speaks_v1)
            up_s = clock() - start
            yield Disconnect()
            if progress.lost():
                logger.info("replay repeatedly interrupted; possible gap")
                yield Notify(common.on_gap, options.room)
        delay_s = reconnect.delay_after(failure, up_s, options.address.named)
        logger.info("%s; reconnecting in %.1f s", failure.reason, delay_s)
        state = SubscriptionState("reconnecting", reconnect.count, delay_s, failure.reason)
        yield Notify(common.on_state_change, state)
        yield Sleep(delay_s)


class _Handler:
    """Handles the messages of one connection."""

    def __init__(self, options: RoomOptions, progress: RoomProgress, keepalive: Keepalive) -> None:
        self._options = options
        self._progress = progress
        self._keepalive = keepalive

    def __call__(self, content: Content, _size: int) -> Handling:
        progress = self._progress
        has_gap = False
        if isinstance(content, Notification):
            progress.move_to(content.cursor)
            if progress.is_new(content):
                yield Deliver(content)
            # The consumer has requested the next one, so it has processed this one.
            progress.received = progress.cursor
        elif content.type == SUBSCRIBED:
            has_gap = progress.subscribed(content)
        if self._keepalive.acknowledge(progress.received):
            yield WakeKeepalive()
        if has_gap:
            yield Notify(self._options.common.on_gap, self._options.room)
