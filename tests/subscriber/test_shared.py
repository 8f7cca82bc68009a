"""Subscriptions that share one connection, without I/O."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from synap_realtime import Notification, SubscriptionError
from synap_realtime.protocol.control import SUBPROTOCOL_V2
from synap_realtime.protocol.rooms import Room
from synap_realtime.subscriber import options, steps
from synap_realtime.subscriber.reconnect import Failure
from synap_realtime.subscriber.shared import ConnectionOptions, SharedConnection
from synap_realtime.subscriber.shared_keepalive import SharedKeepalive
from synap_realtime.subscriber.shared_subscription import MAX_QUEUED, Queued, SharedSubscription

from .conftest import control, note

URL = "http://127.0.0.1:1"


class Consumer:
    """A subscription, and what its consumer has not processed yet."""

    def __init__(self, network: Network, room: str | list[str], **more: Any) -> None:
        arguments = {
            "after": None, "max_reconnects": 2, "acknowledge": True, "on_gap": self.gaps_append,
            "on_state_change": lambda state: self.states.append(state.status), **more,
        }  # fmt: skip
        self.gaps: list[str] = []
        self.states: list[str] = []
        self.items: list[Queued] = []
        self._network = network
        checked = options.check(options.Arguments(room, URL, **arguments))
        self.subscription = SharedSubscription(checked, self.items.append, lambda: 0.5)
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
                case steps.Notify(function, value):
                    if function is not None:
                        function(value)
                case Exception() as error:
                    raise error
                case None:
                    raise AssertionError("the server has such connections")
            self._network.connection.on_processed(self.subscription, item)
        return ids


class Network:
    """Executes the steps of a shared connection.

    Attributes:
        now: the clock, in seconds.
        slept: the delays before reconnects, and to let consumers catch up.
        on_sleep: called during each of these delays.
        connects: the results of the next attempts to connect; then they succeed.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.on_sleep: Callable[[], object] = lambda: None
        self.connects: list[Failure] = []
        self.slept: list[float] = []
        checked = options.check(options.Arguments("user_1", URL))
        common = ConnectionOptions(checked.address, None)
        self.connection = SharedConnection(common, self.clock, lambda: 0.5)
        self._running = self.connection.run()
        self._keepalive: SharedKeepalive | None = None
        self._step: steps.Step | None = None

    def clock(self) -> float:
        return self.now

    def connect(self, answer: steps.StepResult = SUBPROTOCOL_V2) -> None:
        self._step = self._running.send(None)
        assert isinstance(self._step, steps.Connect)
        self._run(answer)

    def receive(self, *messages: str | Failure) -> None:
        for message in messages:
            assert isinstance(self._step, steps.Receive)
            self._run(message)

    def _run(self, answer: steps.StepResult) -> None:
        while True:
            try:
                self._step = self._running.send(answer)
            except StopIteration:
                self._step = None
                return
            answer = None
            match self._step:
                case steps.StartKeepalive(keepalive):
                    assert isinstance(keepalive, SharedKeepalive)
                    self._keepalive = keepalive
                case steps.Sleep(delay_s):
                    self.slept.append(delay_s)
                    self.now += delay_s
                    self.on_sleep()
                case steps.Connect():
                    answer = self.connects.pop(0) if self.connects else SUBPROTOCOL_V2
                case steps.Receive():
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


ROOMS = ["user_1", "request_1"]


def test_rooms_of_one_subscription_have_their_own_positions(network: Network) -> None:
    one = Consumer(network, ROOMS, after={"user_1": "a-7"}, max_reconnects=None)
    network.connect()
    assert network.sent() == [
        act("subscribe", "user_1", after="a-7"), act("subscribe", "request_1"),
    ]  # fmt: skip
    network.receive(
        subscribed("user_1", "a-7"), note("m1", "b-1", room="request_1"),
        note("n8", "a-8", room="user_1"), subscribed("request_1", "b-1"),
    )  # fmt: skip
    assert one.process() == ["m1", "n8"]
    assert network.sent() == [
        act("ack", "user_1", cursor="a-8"), act("ack", "request_1", cursor="b-1"),
    ]  # fmt: skip
    network.receive(Failure("cut"))
    assert network.sent() == [
        act("subscribe", "user_1", after="a-8"), act("subscribe", "request_1", after="b-1"),
    ]  # fmt: skip
    one.process()
    assert one.states == ["connected", "reconnecting", "connected"]


def test_room_of_several_that_the_server_ends_is_subscribed_again(network: Network) -> None:
    """The connection is up, so the state of the subscription does not change."""
    one = Consumer(network, ROOMS)
    network.connect()
    network.sent()
    ended = control("unsubscribed", room="user_1", code=4008, reason="slow", reconnectAfterMs=500)
    network.receive(note("n1", "a-1", room="user_1"), ended, note("m1", "b-1", room="request_1"))
    network.now += 1
    network.receive(note("m2", "b-2", room="request_1"), note("late", "a-2", room="user_1"))
    assert network.sent() == [act("subscribe", "user_1", after="a-1")]
    network.receive(note("n2", "a-2", room="user_1"))
    assert one.process() == ["n1", "m1", "m2", "late", "n2"]
    assert one.states == ["connected"]


def test_refused_room_ends_its_subscription_and_no_other(network: Network) -> None:
    one, other = Consumer(network, ROOMS), Consumer(network, "user_2")
    network.connect()
    network.sent()
    network.receive(note("m1", "b-1", room="request_1"))
    refusal = {"code": "forbidden", "action": "subscribe", "room": "user_1", "details": "x"}
    network.receive(control("error", **refusal))
    assert network.sent() == [act("unsubscribe", "request_1")]
    network.receive(note("late", "b-2", room="request_1"), note("n1", "c-1", room="user_2"))
    with pytest.raises(SubscriptionError, match=r"user_1: .* Forbidden: x") as error:
        one.process()
    assert error.value.code == 403
    assert one.items == []
    assert other.process() == ["n1"]


def test_room_that_stays_unavailable_ends_its_subscription(network: Network) -> None:
    one = Consumer(network, ROOMS, max_reconnects=2)
    network.connect()
    refusal = {"code": "unavailable", "action": "subscribe", "room": "user_1", "details": "x"}
    for _ in range(3):
        network.receive(control("error", **refusal))
        network.now += 10
        network.receive("pong")
    with pytest.raises(SubscriptionError, match="gave up after 2") as error:
        one.process()
    assert error.value.retriable


def test_connection_with_one_consumer_waits_before_it_leaves_rooms(network: Network) -> None:
    """Leaving and subscribing to many rooms again would exceed the server's rate of messages."""
    one = Consumer(network, ROOMS)
    network.connect()
    network.sent()
    for cycle in range(4):
        network.on_sleep = lambda: None
        numbers = range(1000 * cycle, 1000 * cycle + MAX_QUEUED + 1 - len(one.items))
        network.receive(*(note(f"n{n}", f"a-{n}", room="user_1") for n in numbers))
        network.on_sleep = one.process
        network.receive(note(f"m{cycle}", f"b-{cycle}", room="request_1"))
    assert {each["action"] for each in network.sent()} == {"ack"}


def test_rooms_of_a_consumer_that_stays_slow_are_left_and_continued(network: Network) -> None:
    one = Consumer(network, ROOMS)
    network.connect()
    network.receive(subscribed("user_1", "a-0"), subscribed("request_1", "b-0"))
    network.sent()
    count = MAX_QUEUED  # and the state
    network.receive(*(note(f"n{n}", f"a-{n}", room="user_1") for n in range(1, count + 1)))
    network.receive(note("m1", "b-1", room="request_1"), note("lost", "a-5000", room="user_1"))
    assert [each for each in network.sent() if each["action"] != "ack"] == [
        act("unsubscribe", "request_1"), act("unsubscribe", "user_1"),
    ]  # fmt: skip
    assert len(one.process()) == count
    assert [each for each in network.sent() if each["action"] != "ack"] == [
        act("subscribe", "request_1", after="b-0"),
        act("subscribe", "user_1", after=f"a-{count}"),
    ]
    for room in ("request_1", "user_1"):
        network.receive(control("unsubscribed", room=room))
    network.receive(note("m1", "b-1", room="request_1"), note("next", "a-1001", room="user_1"))
    assert one.process() == ["m1", "next"]
    assert (one.gaps, one.states) == ([], ["connected"])


def test_one_connection_has_128_rooms(network: Network) -> None:
    Consumer(network, [f"request_{n}" for n in range(128)])
    assert not network.connection.can_add(Room("user_1"))
    network.connect()
    assert [each["action"] for each in network.sent()] == ["subscribe"] * 128


@pytest.mark.parametrize("answer", [None, Failure("no", status=404), Failure("no", status=403)])
def test_server_without_such_connections_ends_nothing(
    network: Network, answer: steps.StepResult
) -> None:
    """The rooms continue on connections of their own, from where they are."""
    consumers = [Consumer(network, ROOMS, after="a-1"), Consumer(network, "user_2")]
    network.connect(answer)
    assert [consumer.items[-1].content for consumer in consumers] == [None, None]
    assert consumers[0].subscription.positions == {"user_1": "a-1", "request_1": "a-1"}
    assert network.connection.is_empty


def test_interrupted_replay_of_one_of_several_rooms_is_requested_again(network: Network) -> None:
    one = Consumer(network, ROOMS, after={"user_1": "a-1"}, max_reconnects=None)
    network.connect()
    network.receive(subscribed("request_1", "b-0"), note("n5", "a-5", room="user_1"))
    for _ in range(2):
        network.sent()
        network.receive(Failure("cut"))
        assert network.sent()[0] == act("subscribe", "user_1", after="a-1")
        network.receive(note("n5", "a-5", room="user_1"))
    network.receive(Failure("cut"))
    assert network.sent()[0] == act("subscribe", "user_1", after="a-5")
    assert one.process() == ["n5"]
    assert one.gaps == ["user_1"], "the server reports a gap only at the end of a replay"


@pytest.mark.parametrize("rooms", ["user_1", ROOMS], ids=["one", "several"])
def test_failed_attempt_to_connect_interrupts_no_replay(
    network: Network, rooms: str | list[str]
) -> None:
    """While the server restarts, each of them would count as a replay that may have lost a gap."""
    one = Consumer(network, rooms, after={"user_1": "a-1"} if rooms is ROOMS else "a-1",
                   max_reconnects=None)  # fmt: skip
    network.connect()
    network.receive(note("n5", "a-5", room="user_1"))
    network.sent()
    network.connects = [Failure("refused")] * 10
    network.receive(Failure("cut"))
    assert network.sent()[0] == act("subscribe", "user_1", after="a-1")
    one.process()
    assert one.gaps == []
