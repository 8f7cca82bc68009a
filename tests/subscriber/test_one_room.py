"""The rules of a subscription as steps, without a socket and with a manual clock."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from synap_realtime import ConfigurationError, InvalidArgumentError, subscribe, subscribe_sync
from synap_realtime.subscriber import progress
from synap_realtime.subscriber.keepalive import Keepalive
from synap_realtime.subscriber.one_room import run
from synap_realtime.subscriber.options import Arguments, check
from synap_realtime.subscriber.reconnect import Failure
from synap_realtime.subscriber.steps import (
    Connect,
    Deliver,
    Notify,
    Receive,
    StartKeepalive,
    StepResult,
)

from .conftest import control, note

SUBSCRIBE = pytest.mark.parametrize("function", [subscribe, subscribe_sync])


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Driver:
    """Drives the steps of one subscription and records ids in ``received``."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.received: list[str | None] = []
        self.dials: list[str | None] = []
        self.keepalive: Keepalive
        arguments = Arguments("user_1", "http://x", **{"max_reconnects": 5, **options})
        (room,) = check(arguments).by_room()
        self.steps = run(room, self.clock, lambda: 0.0)
        self.step = next(self.steps)

    def answer(self, value: StepResult, subprotocol: str | None = "synap.v1") -> None:
        """Answer the Receive that waits, and go on to the next."""
        if isinstance(self.step, Receive):
            self.step = self.steps.send(value)
        while not isinstance(self.step, Receive):
            answer: StepResult = None
            if isinstance(self.step, Connect):
                self.dials.append(self.step.after)
                answer = subprotocol
            elif isinstance(self.step, StartKeepalive):
                self.keepalive = self.step.keepalive
            elif isinstance(self.step, Deliver):
                self.received.append(self.step.notification.id)
            elif isinstance(self.step, Notify) and self.step.function:
                self.step.function(self.step.value)
            self.step = self.steps.send(answer)

    def connect(self, subprotocol: str | None = "synap.v1") -> None:
        self.answer(None, subprotocol)

    @property
    def patience(self) -> float:
        assert isinstance(self.step, Receive)
        return self.step.timeout_s


def test_resumes_from_the_last_cursor_or_that_of_subscribed() -> None:
    driver = Driver()
    driver.connect()
    driver.answer(note("n1", "c-1"))
    driver.answer(control("subscribed", cursor="c-7", recovered=True))
    driver.answer(Failure("lost"))
    driver.answer(control("subscribed", cursor="c-7", recovered=True))
    driver.answer(note("n2", "c-8"))
    driver.answer(Failure("lost"))
    assert driver.dials == [None, "c-7", "c-8"]


def test_interrupted_replay_is_requested_again_to_report_a_gap() -> None:
    gaps: list[str] = []
    driver = Driver(after="c-1", on_gap=gaps.append)
    driver.connect()
    driver.answer(note("n51", "c-51"))
    driver.answer(Failure("lost"))
    driver.answer(note("n51", "c-51"))
    driver.answer(control("subscribed", cursor="c-51", recovered=False))
    driver.answer(Failure("lost"))
    assert driver.dials == ["c-1", "c-1", "c-51"]
    assert (driver.received, gaps) == (["n51"], ["user_1"])


def test_repeatedly_interrupted_replays_end_as_a_gap() -> None:
    gaps: list[str] = []
    driver = Driver(after="c-1", max_reconnects=None, on_gap=gaps.append)
    driver.connect()
    for n in range(2, 6):
        driver.answer(note(f"n{n}", f"c-{n}"))
        driver.answer(Failure("lost"))
    assert driver.dials == ["c-1", "c-1", "c-1", "c-4", "c-4"]
    assert gaps == ["user_1"]


def test_a_server_without_control_frames_is_resumed_from_the_last_cursor() -> None:
    driver = Driver()
    driver.connect(None)
    driver.answer(note("n1", "c-1"))
    driver.answer(Failure("lost"), None)
    assert driver.dials == [None, "c-1"]


def test_ids_that_were_seen_are_dropped_and_forgotten_in_time() -> None:
    driver = Driver()
    driver.connect()
    for id in ("n1", "n2", "n1", *(f"m{n}" for n in range(progress.SEEN_IDS)), "n1"):
        driver.answer(note(id))
    assert driver.received[:3] == ["n1", "n2", "m0"]
    assert driver.received.count("n1") == 2


def test_notification_without_id_or_cursor_is_delivered() -> None:
    driver = Driver()
    driver.connect(None)
    for _ in range(2):
        driver.answer(note(None))
    assert driver.received == [None, None]


@pytest.mark.parametrize(
    ("after", "gap_count"), [("c-1", 2), (None, 1), ("earliest", 1), ("latest", 1)]
)
def test_a_gap_is_reported_where_something_can_be_missed(after: str | None, gap_count: int) -> None:
    gaps: list[str] = []
    driver = Driver(after=after, on_gap=gaps.append)
    driver.connect()
    driver.answer(control("subscribed", cursor="d-1", recovered=False))
    driver.answer(Failure("lost"))
    driver.answer(control("subscribed", cursor="d-1", recovered=False))
    driver.answer(Failure("lost"))
    driver.answer(control("subscribed", cursor="d-1", recovered=True))
    assert gaps == ["user_1"] * gap_count


def test_a_gap_on_an_open_connection_is_reported_and_its_position_acknowledged() -> None:
    gaps: list[str] = []
    driver = Driver(on_gap=gaps.append)
    driver.connect()
    driver.answer(control("subscribed", cursor="d-1", recovered=True))
    driver.answer(note("n2", "d-2"))
    driver.answer(control("subscribed", cursor="e-2", recovered=False))
    assert driver.keepalive.due() == ['{"action": "ack", "cursor": "e-2"}']
    driver.answer(note("n3", "e-3"))
    driver.answer(Failure("lost"))
    assert gaps == ["user_1"]
    assert driver.dials == [None, "e-3"]
    assert driver.received == ["n2", "n3"]


NONSENSE = [
    "", "nonsense", "[" * 100_000, "[1,2]", "null", '"text"', "{}", '{"type":5,"data":{}}',
    '{"type":"a"}', '{"type":"a","data":[]}', '{"type":"synap.future","data":{"x":1}}',
    '{"type":"synap.subscribed"}', '{"type":"synap.subscribed","data":{"cursor":{}}}',
    '{"type":"synap.closing","data":{"reconnectAfterMs":"soon"}}',
    '{"type":"a","data":{},"timestamp":"secret"}', "9" * 5000, b"binary", b"\xff\xfe",
    '{"type":"a","data":{},"id":"\\ud800"}', '{"type":"a","data":{},"cursor":5}',
]  # fmt: skip


@pytest.mark.parametrize("message", NONSENSE)
def test_invalid_messages_are_ignored_and_never_logged(
    message: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    driver = Driver()
    driver.connect()
    driver.answer(message)
    driver.answer(note("n1"))
    assert driver.received == ["n1"]
    assert "nonsense" not in caplog.text
    assert "secret" not in caplog.text


def test_a_ping_each_30_s_and_no_pong_in_10_s_is_dead() -> None:
    states: list[Any] = []
    driver = Driver(on_state_change=states.append)
    driver.connect()
    assert driver.patience == 40
    driver.clock.now += 30
    assert driver.keepalive.due() == ["ping"]
    driver.clock.now += 9
    driver.answer("pong")
    driver.clock.now += 21
    assert driver.keepalive.due() == ["ping"]
    driver.clock.now += 10
    driver.answer(None)
    assert "no pong" in states[-2].reason
    assert states[-2].attempt == 1


def test_busy_consumer_is_not_a_dead_peer() -> None:
    driver = Driver()
    driver.connect()
    keepalive = driver.keepalive
    for _ in range(10):  # five minutes in which the consumer reads nothing
        driver.clock.now += 30
        assert keepalive.due() == ["ping"]
    since = driver.clock.now
    for _ in range(50):  # then what has waited is read, each for a second
        keepalive.waited(since)
        assert not keepalive.is_dead
        driver.clock.now += 1
        since = driver.clock.now
    keepalive.pong()
    assert not keepalive.is_dead


def test_notification_is_acknowledged_when_the_next_is_requested() -> None:
    driver = Driver()
    driver.connect()
    driver.step = driver.steps.send(note("n1", "c-1"))
    assert isinstance(driver.step, Deliver)
    assert driver.keepalive.due() == []
    driver.connect()
    assert driver.keepalive.due() == ['{"action": "ack", "cursor": "c-1"}']
    assert driver.keepalive.due() == []


def test_acknowledgements_are_batched() -> None:
    driver = Driver()
    driver.connect()
    driver.answer(note("n0", "c-0"))
    assert len(driver.keepalive.due()) == 1
    for n in range(1, 100):
        driver.answer(note(f"n{n}", f"c-{n}"))
    assert driver.keepalive.due() == []
    driver.clock.now += driver.keepalive.next_wakeup_s()
    assert driver.keepalive.due() == ['{"action": "ack", "cursor": "c-99"}']
    assert driver.keepalive.next_wakeup_s() > 20


@pytest.mark.parametrize(("subprotocol", "wanted"), [(None, True), ("synap.v1", False)])
def test_nothing_is_acknowledged_unless_both_want_it(subprotocol: str | None, wanted: bool) -> None:
    driver = Driver(acknowledge=wanted)
    driver.connect(subprotocol)
    driver.answer(note("n1", "c-1"))
    assert driver.keepalive.due() == []
    assert driver.keepalive.pending_ack() == []


@SUBSCRIBE
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"room": "nope"}, "room"),
        ({"room": 5}, "room"),
        ({"after": "no cursor"}, "after"),
        ({"after": 5}, "after"),
        ({"max_reconnects": -1}, "max_reconnects"),
        ({"max_reconnects": True}, "max_reconnects"),
        ({"max_reconnects": float("nan")}, "max_reconnects"),
        ({"max_reconnects": 1.5}, "max_reconnects"),
        ({"max_reconnects": "5"}, "max_reconnects"),
        ({"after": float("nan")}, "after"),
        ({"acknowledge": "yes"}, "acknowledge"),
        ({"acknowledge": None}, "acknowledge"),
        ({"room": ""}, "room"),
        ({"room": None}, "room"),
        ({"room": "user_None"}, "room"),
        ({"room": "user_undefined"}, "room"),
        ({"room": "request_null"}, "room"),
        ({"room": f"user_{float('nan')}"}, "room"),
        ({"on_gap": 5}, "on_gap"),
        ({"on_state_change": "x"}, "on_state_change"),
    ],
)
def test_invalid_argument_raises_at_the_call(
    function: Any, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        function(**{"room": "user_1", **arguments})
    assert caught.value.field == field


@SUBSCRIBE
@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "ftp://u:secret@x"},
        {"url": "http://u:se/secret@x"},
        {"url": "http://u:secret@x?y"},
        {"token": "secret\n"},
        {"token": 5},
        {"token": ""},
        {"token": ["secret"]},
        {"token": "<html>secret\n</html>"},
        {"url": ""},
        {"url": "/realtime"},
        {"url": "rooms.example"},
        {"url": 5},
    ],
)
def test_invalid_setting_raises_at_the_call_without_secrets(
    function: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        function("user_1", **arguments)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("http://h:1/", "ws://h:1/rooms/user_a%3Ab/subscribe?after=c-1"),
        ("https://h/realtime/v1/", "wss://h/realtime/v1/rooms/user_a%3Ab/subscribe?after=c-1"),
        ("ws://h/x", "ws://h/x/rooms/user_a%3Ab/subscribe?after=c-1"),
        ("wss://u:p@h", "wss://u:p@h/rooms/user_a%3Ab/subscribe?after=c-1"),
    ],
)
def test_connects_to_the_expected_url(url: str, uri: str) -> None:
    (options,) = check(Arguments("user_a:b", url)).by_room()
    assert options.uri("c-1", with_token=False) == uri
    assert "p@" not in options.uri("c-1", with_token=True)
