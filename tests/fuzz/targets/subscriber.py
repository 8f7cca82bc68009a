"""The Python subscriber delivers, ignores or reconnects for any server input."""

from __future__ import annotations

import logging
from collections import deque

from synap_realtime.errors import SubscriptionError
from synap_realtime.protocol.control import SUBPROTOCOL, SUBPROTOCOL_V2
from synap_realtime.protocol.notification import Notification
from synap_realtime.subscriber import one_room, options, steps
from synap_realtime.subscriber.reconnect import Failure
from synap_realtime.subscriber.shared import ConnectionOptions, SharedConnection
from synap_realtime.subscriber.shared_keepalive import SharedKeepalive
from synap_realtime.subscriber.shared_subscription import Queued, SharedSubscription

from ..target import Target, require

_END = Failure("the input has ended")
_URL = "http://127.0.0.1:1"


class _Clock:
    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 0.001
        return self._now


class _Consumer:
    """A subscription on a shared connection, whose consumer processes what has come."""

    def __init__(self, connection: SharedConnection, arguments: options.Arguments) -> None:
        self._connection = connection
        self._items: deque[Queued] = deque()
        self._has_ended = False
        self._subscription = SharedSubscription(
            options.check(arguments), self._items.append, lambda: 0.5
        )
        connection.add(self._subscription)

    def process(self) -> None:
        while self._items:
            item = self._items.popleft()
            require(not self._has_ended, "nothing follows the end")
            match item.content:
                case Notification() as notification:
                    require(isinstance(notification.data, dict), "a notification has data")
                case steps.Notify(function, value):
                    if function is not None:
                        function(value)
                case end:
                    require(end is None or isinstance(end, SubscriptionError), "a known error")
                    self._has_ended = True
            self._connection.on_processed(self._subscription, item)


class SubscriberTarget(Target):
    """Messages of a server, separated by line feeds; one that begins with a NUL is binary.

    They are sent on a connection with one room, and on one with several.
    """

    name = "subscriber"
    fixed_mutations = 20_000

    def __init__(self) -> None:
        logging.getLogger("synap_realtime.subscriber").setLevel(logging.ERROR)
        self._one = options.Arguments(
            "user_1", _URL, after="a-1", max_reconnects=2,
            on_gap=lambda _: None, on_state_change=lambda _: None,
        )  # fmt: skip
        self._several = self._one._replace(room=["request_1", "request_2"])

    def check(self, data: bytes) -> None:
        messages = [
            bytes(part) if part.startswith(b"\0") else part.decode(errors="replace")
            for part in data.split(b"\n")
        ]
        (room,) = options.check(self._one).by_room()
        try:
            self._run(one_room.run(room, _Clock(), lambda: 0.5), SUBPROTOCOL, list(messages), [])
        except SubscriptionError:
            pass
        else:
            require(False, "a subscription ends with an error")
        common = ConnectionOptions(room.address, None)
        shared = SharedConnection(common, _Clock(), lambda: 0.5)
        consumers = [_Consumer(shared, each) for each in (self._one, self._several)]
        self._run(shared.run(), SUBPROTOCOL_V2, messages, consumers)
        require(shared.is_empty, "all subscriptions have ended")

    def _run(
        self,
        running: steps.Steps,
        subprotocol: str,
        messages: list[str | bytes],
        consumers: list[_Consumer],
    ) -> None:
        answer: steps.StepResult = None
        dials = 0
        keepalive: SharedKeepalive | None = None
        while True:
            try:
                step = running.send(answer)
            except StopIteration:
                break
            answer = None
            if isinstance(step, steps.Connect):
                dials += 1
                answer = subprotocol if dials < 3 else Failure("refused")
            elif isinstance(step, steps.Receive):
                require(0 <= step.timeout_s < 3600, "a wait has a bound")
                answer = messages.pop(0) if messages else _END
            elif isinstance(step, steps.StartKeepalive):
                if isinstance(step.keepalive, SharedKeepalive):
                    keepalive = step.keepalive
            elif isinstance(step, steps.Sleep):
                require(0 <= step.delay_s < 1e6, "a pause has a bound")
            elif isinstance(step, steps.Notify) and step.function is not None:
                step.function(step.value)
            elif isinstance(step, steps.Deliver):
                require(isinstance(step.notification.data, dict), "a notification has data")
            for consumer in consumers:
                consumer.process()
            if keepalive is not None:
                require(len(keepalive.due()) < 32, "each message leads to few actions")
        for consumer in consumers:
            consumer.process()


TARGET = SubscriberTarget
