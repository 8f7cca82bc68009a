"""The Python subscriber delivers, ignores or reconnects for any server input."""

from __future__ import annotations

import logging

from synap_realtime.errors import SubscriptionError
from synap_realtime.protocol.control import SUBPROTOCOL
from synap_realtime.subscriber import one_room, options, steps
from synap_realtime.subscriber.reconnect import Failure

from ..target import Target, require

_END = Failure("the input has ended")


class SubscriberTarget(Target):
    """Messages of a server, separated by line feeds; one that begins with a NUL is binary."""

    name = "subscriber"

    def __init__(self) -> None:
        logging.getLogger("synap_realtime.subscriber").setLevel(logging.ERROR)
        arguments = options.Arguments(
            "user_1", "http://127.0.0.1:1", after="a-1", max_reconnects=2,
            on_gap=lambda _: None, on_state_change=lambda _: None,
        )  # fmt: skip
        (self._options,) = options.check(arguments).by_room()

    def check(self, data: bytes) -> None:
        messages = [
            bytes(part) if part.startswith(b"\0") else part.decode(errors="replace")
            for part in data.split(b"\n")
        ]
        now = 0.0

        def clock() -> float:
            nonlocal now
            now += 0.001
            return now

        running = one_room.run(self._options, clock, lambda: 0.5)
        answer: steps.EffectResult = None
        dials = 0
        try:
            while True:
                step = running.send(answer)
                answer = None
                if isinstance(step, steps.Connect):
                    dials += 1
                    answer = SUBPROTOCOL if dials < 3 else Failure("refused")
                elif isinstance(step, steps.Receive):
                    require(0 <= step.timeout_s < 3600, "a wait has a bound")
                    answer = messages.pop(0) if messages else _END
                elif isinstance(step, steps.StartKeepalive):
                    pass
                elif isinstance(step, steps.Sleep):
                    require(0 <= step.delay_s < 1e6, "a pause has a bound")
                elif isinstance(step, steps.Notify) and step.function is not None:
                    step.function(step.value)
                elif isinstance(step, steps.Deliver):
                    require(isinstance(step.notification.data, dict), "a notification has data")
        except SubscriptionError:
            return


TARGET = SubscriberTarget
