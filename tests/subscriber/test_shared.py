"""Subscriptions that share one connection, without I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest

from synap_realtime import Notification, SubscriptionError
from synap_realtime.protocol.control import SUBPROTOCOL_V2
from synap_realtime.subscriber import core, options
from synap_realtime.subscriber.reconnect import Failure
from synap_realtime.subscriber.shared import ConnectionOptions, SharedConnection
from synap_realtime.subscriber.shared_keepalive import SharedKeepalive
from synap_realtime.subscriber.shared_subscription import MAX_QUEUED, Queued, SharedSubscription

from .conftest import control, note

URL = "http://127.0.0.1:1"


class Consumer:
    """A subscription, and what its consumer has not processed yet."""

    def __init__(self, network: Network, room: str, **more: Any) -> None:
        arguments = {
            "after": None, "max_reconnects": 2, "acknowledge": True, "on_gap": self.gaps_append,
            "on_state_change": lambda state: self.states.append(state.status), **more,
        }  # fmt: skip
        self.gaps: list[str] = []
        self.states: list[str] = []
        self.items: list[Queued] = []
        self._network = network
        checked = options.check(room, URL, None, **arguments)
        self.subscription = SharedSubscription(
            checked, self.items.append, network.clock, lambda: 0.5
        )
        network.connection.add(self.subscription)

    def gaps_append(self, room: str) -> None:
        self.gaps.append(room)

    def leave(self) -> None:
        self._network.connection.remove(self.subscription)

    def process(self, count: int = 1_000_000) -> list[str | None]:
        """Process so many items, and return the ids of the notifications."""
        ids = []
        while self.items and count:
            count -= 1
            item = self.items.pop(0)
            match item.content:
                case Notification(id=id):
                    ids.append(id)
                case core.Notify(function, value):
                    if function is not None:
                        function(value)
                case Exception() as error:
                    raise error
            self._network.connection.on_processed(self.subscription, item)
        return ids


class Network:
    """Executes the steps of a shared connection.

    Attributes:
        now: the clock, in seconds.
        slept: the delays before reconnects.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        checked = options.check(
            "user_1", URL, None, after=None, max_reconnects=None, acknowledge=True, on_gap=None,
            on_state_change=None,
        )  # fmt: skip
        common = ConnectionOptions(checked.address, None)
        self.connection = SharedConnection(common, self.clock, lambda: 0.5)
        self._steps = self.connection.run()
        self._keepalive: SharedKeepalive | None = None
        self._step: core.Step | None = None

    def clock(self) -> float:
        return self.now

    def connect(self) -> None:
        self._step = self._steps.send(None)
        assert isinstance(self._step, core.Connect)
        self._run(SUBPROTOCOL_V2)

    def receive(self, *messages: str | Failure) -> None:
        for message in messages:
            assert isinstance(self._step, core.Receive)
            self._run(message)

    def _run(self, answer: core.EffectResult) -> None:
        while True:
            self._step = self._steps.send(answer)
            answer = None
            match self._step:
                case core.StartKeepalive(keepalive):
                    assert isinstance(keepalive, SharedKeepalive)
                    self._keepalive = keepalive
                case core.Sleep(delay_s):
                    self.slept.append(delay_s)
                    self.now += delay_s
                case core.Connect():
                    answer = SUBPROTOCOL_V2
                case core.Receive():
                    return

    def sent(self) -> list[dict[str, Any]]:
        """Return the actions that were sent since the last call."""
        assert self._keepalive is not None
        self.now += 1
        return [json.loads(text) for text in self._keepalive.due() if text != "ping"]


@pytest.fixture
def network() -> Network:
    return Network()


def subscribed(room: str, cursor: str = "a-1", **more: Any) -> str:
    return control("subscribed", **{"room": room, "cursor": cursor, "recovered": True, **more})


def act(action: str, room: str, **members: str) -> dict[str, Any]:
    return {"action": action, "room": room, **members}


def test_acknowledges_what_was_processed_and_leaves_in_order(network: Network) -> None:
    one, two = Consumer(network, "user_1"), Consumer(network, "user_2", acknowledge=False)
    network.connect()
    assert network.sent() == [act("subscribe", "user_1"), act("subscribe", "user_2")]
    network.receive(note("n1", "a-1", room="user_1"), note("m1", "b-1", room="user_2"))
    network.receive(note("n2", "a-2", room="user_1"))
    assert network.sent() == []
    one.process(2)
    two.process()
    assert network.sent() == [act("ack", "user_1", cursor="a-1")]
    one.process()
    one.leave()
    assert network.sent() == [act("ack", "user_1", cursor="a-2"), act("unsubscribe", "user_1")]


def test_ignores_what_was_sent_before_the_room_was_left(network: Network) -> None:
    """The room is subscribed again before the server has processed the first unsubscribe."""
    first = Consumer(network, "user_1")
    network.connect()
    first.leave()
    again = Consumer(network, "user_1", after="a-5")
    assert network.sent() == [
        act("subscribe", "user_1"), act("unsubscribe", "user_1"),
        act("subscribe", "user_1", after="a-5"),
    ]  # fmt: skip
    network.receive(note("old", "a-1", room="user_1"), subscribed("user_1", recovered=False))
    network.receive(control("unsubscribed", room="user_1"), note("new", "a-6", room="user_1"))
    assert again.process() == ["new"]
    assert again.gaps == []
    assert again.states == ["connected"]


def test_room_that_the_server_had_ended_can_be_left(network: Network) -> None:
    first = Consumer(network, "user_1")
    Consumer(network, "user_2")
    network.connect()
    first.leave()
    network.receive(control("error", code="not_subscribed", action="unsubscribe", room="user_1"))
    again = Consumer(network, "user_1")
    network.receive(note("n1", "a-1", room="user_1"))
    assert again.process() == ["n1"]


def test_slow_consumer_leaves_its_room_until_it_has_caught_up(network: Network) -> None:
    slow, other = Consumer(network, "user_1"), Consumer(network, "user_2")
    network.connect()
    network.receive(subscribed("user_1", "a-0"))
    network.sent()
    count = MAX_QUEUED + 10
    network.receive(*(note(f"n{n}", f"a-{n}", room="user_1") for n in range(1, count)))
    assert network.sent() == [act("unsubscribe", "user_1")]
    network.receive(note("m1", "b-1", room="user_2"))
    assert other.process() == ["m1"]
    processed = slow.process(MAX_QUEUED // 2 + 10)
    actions = [each for each in network.sent() if each["room"] == "user_1"]
    last = f"a-{len(slow.items) + len(processed)}"
    assert actions == [
        act("subscribe", "user_1", after=last),
        act("ack", "user_1", cursor=f"a-{len(processed)}"),
    ]
    network.receive(control("unsubscribed", room="user_1"), note("after", "a-2000", room="user_1"))
    assert [*processed, *slow.process()][-1] == "after"
    assert slow.gaps == []
    assert slow.states == ["connected"]


def test_each_subscription_resumes_and_gives_up_by_itself(network: Network) -> None:
    patient = Consumer(network, "user_1", max_reconnects=None)
    impatient = Consumer(network, "user_2", max_reconnects=1)
    network.connect()
    network.receive(subscribed("user_1", "a-0"), note("n1", "a-1", room="user_1"))
    network.sent()
    for _ in range(2):
        network.receive(Failure("cut"))
    assert network.sent() == [act("subscribe", "user_1", after="a-1")]
    assert patient.process() == ["n1"]
    assert patient.states == ["connected", *["reconnecting", "connected"] * 2]
    with pytest.raises(SubscriptionError, match="gave up after 1"):
        impatient.process()


def test_room_that_the_server_ends_is_subscribed_again(network: Network) -> None:
    one, two = Consumer(network, "user_1"), Consumer(network, "user_2")
    network.connect()
    network.sent()
    ended = control("unsubscribed", room="user_1", code=4008, reason="slow", reconnectAfterMs=500)
    network.receive(note("n1", "a-1", room="user_1"), ended)
    assert network.sent() == []
    network.now += 1
    network.receive(note("m1", "b-1", room="user_2"))
    assert network.sent() == [act("subscribe", "user_1", after="a-1")]
    network.receive(
        control("error", code="forbidden", action="subscribe", room="user_1", details="x")
    )
    with pytest.raises(SubscriptionError, match="Forbidden: x") as error:
        one.process()
    assert error.value.code == 403
    assert two.process() == ["m1"]


def test_gap_is_reported_in_its_place(network: Network) -> None:
    one = Consumer(network, "user_1", after="a-1")
    network.connect()
    network.receive(note("n5", "a-5", room="user_1"))
    network.receive(subscribed("user_1", "a-5", recovered=False), note("n6", "a-6", room="user_1"))
    assert one.process(2) == ["n5"]
    assert one.gaps == []
    assert one.process() == ["n6"]
    assert one.gaps == ["user_1"]


def test_consumer_gets_time_before_its_room_is_left(network: Network) -> None:
    """A replay that arrives at once overtakes no consumer that would keep up."""
    one = Consumer(network, "user_1")
    network.connect()
    network.receive(*(note(f"n{n}", f"a-{n}", room="user_1") for n in range(1, 10)))
    assert network.slept == []
    network.receive(*(note(f"n{n}", f"a-{n}", room="user_1") for n in range(10, 40)))
    assert set(network.slept) == {0.0}
    network.receive(*(note(f"n{n}", f"a-{n}", room="user_1") for n in range(40, 600)))
    assert 0 < max(network.slept) < 0.01
    assert len(one.process()) == 599
