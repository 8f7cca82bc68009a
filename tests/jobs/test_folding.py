"""A run's text and progress are folded by real servers, whatever happens to the run."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from synap_realtime import BackgroundBroadcaster, Notification, subscribe
from synap_realtime.broadcast.encoding import EncodedNotification, encode
from synap_realtime.broadcast.responses import Rejection
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications
from synap_realtime.jobs.folding import MAX_TEXT, GrowingText, TextState
from synap_realtime.protocol.rooms import request_room
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.polling import until
from tests.support.served_stores import KINDS, serving_store
from tests.support.timeouts import TIMEOUT_S

REPORT = JobType("report.creation")
WHO = Recipient("42", "r1")


@pytest.fixture(params=KINDS)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a server."""
    async with serving_store(request.param, tmp_path) as address:
        yield address


class Network(httpx.BaseTransport):
    """Passes requests to a server, and lets a test look at them or fail them.

    Attributes:
        lost: how many of the next answers get lost.
        requests: the notifications of each request.
    """

    def __init__(self) -> None:
        self._transport = httpx.HTTPTransport()
        self.lost = 0
        self.requests: list[list[dict[str, Any]]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(json.loads(request.read())["notifications"])
        response = self._transport.handle_request(request)
        if self.lost:
            self.lost -= 1
            response.read()
            raise httpx.ReadTimeout("lost by the test", request=request)
        return response

    def close(self) -> None:
        self._transport.close()


def run(
    broadcaster: BackgroundBroadcaster, attempt: int = 1, *, step: int = 0, run_id: str = "run1"
) -> Reporter:
    lifecycle = RunNotifications(REPORT, run_id, attempt, max_attempts=3, step=step)
    return Reporter(lifecycle, [WHO], broadcaster)


async def write(reporter: Reporter, *pieces: str) -> None:
    """Publish pieces, each in a request of its own."""
    for piece in pieces:
        reporter.delta(piece)
        await reporter.aflush()


async def history(url: str, room: str = "request_r1") -> list[dict[str, Any]]:
    received: list[dict[str, Any]] = []
    after = "earliest"
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while True:
            query = {"limit": "1000", "after": after}
            page = (await client.get(f"/rooms/{room}/history", params=query)).json()
            received += page["notifications"]
            if not page["more"]:
                return received
            after = page["cursor"]


async def text(url: str, room: str = "request_r1") -> str:
    """Return the text that the room's log has, in one notification."""
    (message,) = [each for each in await history(url, room) if each["type"] == REPORT.delta]
    assert message["fold"]["offset"] == message["data"]["index"] == 0
    whole: str = message["data"]["delta"]
    return whole


def events(messages: list[dict[str, Any]]) -> list[str]:
    return [each["type"].rpartition(".")[2] for each in messages]


async def test_a_log_keeps_one_progress_and_one_text_of_a_run(url: str) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        reporter = run(broadcaster)
        reporter.started()
        for n in range(5):
            reporter.progress(n / 5, f"step {n}")
            await write(reporter, "é😀", f"{n}\n")
        reporter.completed({"pages": 3})
        await reporter.aflush()
    in_request, in_user = await history(url), await history(url, "user_42")
    assert events(in_request) == ["started", "progress", "delta", "completed"]
    assert events(in_user) == ["started", "progress", "completed"]
    assert in_request[1]["data"]["progress"] == 0.8
    assert await text(url) == "".join(f"é😀{n}\n" for n in range(5))
    for message in [*in_request, *in_user]:
        event = message["type"].rpartition(".")[2]
        job = {"event": event, "name": REPORT.name, "runId": "run1", "userId": "42"}
        if event != "completed":
            job["attempt"] = 1000
        assert message.get("job") == (None if event == "delta" else job)


async def test_a_late_subscriber_gets_a_text_of_more_pieces_than_a_room_retains(url: str) -> None:
    pieces = [random.Random(n).choice(["tok ", "é", "😀", "\n", '"']) for n in range(1500)]
    async with BackgroundBroadcaster(url) as broadcaster:
        reporter = run(broadcaster)
        reporter.started()
        for piece in pieces:
            reporter.delta(piece)
            if broadcaster.pending > 1:
                await reporter.aflush()
        await reporter.aflush()
        assert await text(url) == "".join(pieces)
        async with asyncio.timeout(TIMEOUT_S):
            stream = subscribe("request_r1", url)
            first, second = await anext(stream), await anext(stream)
            reporter.delta("the end")
            third = await anext(stream)
            await stream.aclose()
    assert first.type == REPORT.started
    assert second.data["delta"] == "".join(pieces)
    assert third.fold is not None
    assert third.fold["offset"] == len("".join(pieces))


async def test_a_retried_attempt_replaces_the_text(url: str) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        first = run(broadcaster)
        await write(first, "Half a", " text")
        first.retrying("Again.")
        second = run(broadcaster, 2)
        await write(second, "The ", "whole")
        await write(first, " and more")  # it has announced the retry
        assert await text(url) == "The whole"


async def test_a_zombie_cannot_write_into_the_text_of_the_next_attempt(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        zombie, second = run(broadcaster), run(broadcaster, 2)
        await write(zombie, "Half a")
        await write(second, "The ")
        await write(zombie, " zombie's", " text", " goes on")
        zombie.progress(0.9, "zombie")
        await zombie.aflush()
        await write(second, "whole")
        second.progress(0.1, "second")
        await second.aflush()
        zombie.progress(1, "zombie")
        await zombie.aflush()
        second.completed({})
        await second.aflush()
        assert await text(url) == "The whole"
    (progress,) = [each for each in await history(url) if each["type"] == REPORT.progress]
    assert progress["data"]["label"] == "second"
    assert caplog.text.count("fold.attempt: got 1000, and the key has attempt 2000") == 2


async def test_the_latest_execution_of_an_attempt_takes_the_text_over(url: str) -> None:
    """A worker was killed, or seemed dead, and the broker delivered the task again."""
    async with BackgroundBroadcaster(url) as broadcaster:
        executions = []
        for number in range(3):
            executions.append(run(broadcaster))
            await write(executions[-1], f"<{number}>", f"text {number}")
            for earlier in executions[:-1]:
                await write(earlier, "lost")
            await write(executions[-1], "!")
            assert await text(url) == f"<{number}>text {number}!"


async def test_a_text_with_which_an_earlier_one_begins_replaces_it(url: str) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        await write(run(broadcaster), "Hello", " world")
        again = run(broadcaster)
        again.delta("Hello")
        again.completed({})
        await again.aflush()
        assert await text(url) == "Hello"


async def test_an_execution_that_takes_over_ends_with_its_whole_text(url: str) -> None:
    """The terminal notification ends the text, so it waits until the text was taken."""
    async with BackgroundBroadcaster(url) as broadcaster:
        await write(run(broadcaster), "What a killed worker wrote, at length")
        again = run(broadcaster)
        again.delta("Other words")
        again.progress(0.5)  # so that the pieces are not joined
        again.delta(", and")
        again.progress(0.6)
        again.delta(" more")
        again.completed({})
        await again.aflush()
        assert await text(url) == "Other words, and more"
        assert (await history(url))[-1]["type"] == REPORT.completed


async def test_steps_that_count_their_attempts_from_1_fence_each_other(url: str) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        await write(run(broadcaster, 4), "step a, attempt 4")
        await write(run(broadcaster, 1, step=1), "step b")
        await write(run(broadcaster, 4), "zombie")
        assert await text(url) == "step b"


async def test_a_lost_answer_neither_doubles_nor_refuses_a_piece(url: str) -> None:
    network = Network()
    async with BackgroundBroadcaster(url, transport=network) as broadcaster:
        reporter = run(broadcaster)
        for n in range(5):
            network.lost = n % 3
            reporter.delta(f"{n} ")
            await until(lambda: not broadcaster.pending)
        assert await text(url) == "0 1 2 3 4 "


async def test_pieces_that_the_queue_has_dropped_are_sent_again(url: str) -> None:
    network = Network()
    async with BackgroundBroadcaster(url, transport=network, max_pending=3) as broadcaster:
        reporter = run(broadcaster)
        await write(reporter, "0 ")
        network.lost = 1
        for n in range(1, 9):
            reporter.delta(f"{n} ")
            reporter.progress(n / 9)  # so that the pieces are not joined
        await until(lambda: not broadcaster.pending)
        assert await text(url) == "0 1 2 3 4 5 6 7 8 "


@asynccontextmanager
async def restarting(port: int) -> AsyncIterator[str]:
    settings = load_settings(drain_timeout_s=0)
    async with running_server(create_app(settings), port=port) as address:
        yield address


async def test_a_server_that_has_lost_the_text_gets_it_again(free_tcp_port: int) -> None:
    async with restarting(free_tcp_port) as url:
        broadcaster = BackgroundBroadcaster(url)
        reporter = run(broadcaster)
        long = "long " * 20_000
        await write(reporter, "0 ", long, "1 ")
        assert await text(url) == f"0 {long}1 "
    async with restarting(free_tcp_port) as url:
        reporter.delta("2 ")
        reporter.progress(0.5)
        reporter.delta("3 ")
        reporter.completed({})
        await until(lambda: not broadcaster.pending)
        assert await text(url) == f"0 {long}1 2 3 "
        await broadcaster.aclose()


async def test_a_text_that_is_too_long_goes_on_without_fold(url: str) -> None:
    """Nothing is lost for subscribers, and later ones have the beginning."""
    pieces = ["😀" * 16_000] * 20  # 1.2 MiB
    async with BackgroundBroadcaster(url) as broadcaster:
        reporter = run(broadcaster)
        reporter.started()
        for piece in pieces:
            await write(reporter, piece)
        reporter.completed({})
        await reporter.aflush()
    whole = "".join(pieces)
    shown = ""
    messages = [each for each in await history(url) if each["type"] == REPORT.delta]
    for message in messages:
        offset = message["fold"]["offset"] if "fold" in message else message["data"]["offset"]
        assert offset == len(shown)
        shown += message["data"]["delta"]
    is_whole = shown == whole
    assert is_whole
    assert 1 < len(messages) < len(pieces)


async def test_a_room_with_too_many_keys_gets_the_text_without_fold(url: str) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        others = [run(broadcaster, run_id=f"other{n}") for n in range(64)]
        for other in others:
            await write(other, "x")
        reporter = run(broadcaster)
        reporter.progress(0.5)
        await write(reporter, "Hel", "lo")
        reporter.completed({})
        await reporter.aflush()
    own = [each for each in await history(url) if each["data"].get("runId") == "run1"]
    assert events(own) == ["progress", "delta", "delta"]
    assert not any("fold" in each for each in own)
    assert [each["data"].get("offset") for each in own] == [None, 0, 3]
    (progress,) = [each for each in await history(url, "user_42") if "fold" in each]
    assert progress["data"]["runId"] == "run1"  # this room has keys left


class StrictServer(httpx.BaseTransport):
    """A server that rejects notifications with members that it does not know."""

    def __init__(self, *, has_batch_route: bool, status: int) -> None:
        self._has_batch_route = has_batch_route
        self._status = status
        self.taken: list[dict[str, Any]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        value = json.loads(request.read())
        if request.url.path == "/broadcast":
            if not self._has_batch_route:
                return httpx.Response(404, json={"error": "Not found"})
            results = [self._take(each) for each in value["notifications"]]
            if any(status != 200 for status, _ in results):
                return httpx.Response(self._status, json={"error": "x", "code": "invalid_request"})
            return httpx.Response(200, json={"results": [body for _, body in results]})
        status, body = self._take(value)
        return httpx.Response(status, json=body)

    def _take(self, value: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "fold" in value or "job" in value:
            return self._status, {"error": "Unknown member", "success": False}
        self.taken.append(value)
        return 200, {"success": True, "broadcastCount": 0}


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("has_batch_route", [True, False])
async def test_a_server_that_rejects_unknown_members_gets_none(
    status: int, *, has_batch_route: bool
) -> None:
    server = StrictServer(has_batch_route=has_batch_route, status=status)
    async with BackgroundBroadcaster(transport=server) as broadcaster:
        reporter = run(broadcaster)
        reporter.started()
        for n in range(4):
            await write(reporter, f"{n} ")
            reporter.progress(n / 4)
        reporter.completed({})
        await until(lambda: not broadcaster.pending)
    once = list({each["id"]: each for each in server.taken}.values())
    assert events(once)[0] == "started"
    assert events(once)[-1] == "completed"
    pieces = [each["data"] for each in once if each["type"] == REPORT.delta]
    assert "".join(each["delta"] for each in pieces) == "0 1 2 3 "
    assert [each["index"] for each in pieces] == [0, 1, 2, 3]
    assert "progress" in events(once)


@pytest.mark.parametrize("run_id", ["ü" * 20, "x" * 125, "x" * 200])
async def test_a_run_id_that_is_no_key_is_reported_without_fold(url: str, run_id: str) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        reporter = run(broadcaster, run_id=run_id)
        reporter.started()
        reporter.progress(0.5)
        await write(reporter, "Hel", "lo")
        reporter.completed({})
        await reporter.aflush()
    received = await history(url)
    assert events(received) == ["started", "progress", "delta", "delta", "completed"]
    assert ("job" in received[0]) == (len(run_id) <= 128)


async def test_no_interleaving_of_faults_changes_the_text(url: str) -> None:
    """Answers get lost while two executions of two attempts write."""
    for seed in range(6):
        chance = random.Random(seed)
        network = Network()
        written: dict[int, str] = {}
        async with BackgroundBroadcaster(url, transport=network) as broadcaster:
            for attempt in (1, 1, 2, 2):
                reporter = run(broadcaster, attempt, run_id=f"seed{seed}")
                for n in range(chance.randrange(1, 12)):
                    network.lost = chance.choice([0, 0, 0, 1])
                    piece = chance.choice("aé😀\n") * chance.randrange(1, 9) + str(n)
                    written[attempt] = written.get(attempt, "") if n else ""
                    written[attempt] += piece
                    reporter.delta(piece)
                    if chance.random() < 0.3:
                        reporter.progress(chance.random())
                    if chance.random() < 0.3:
                        await until(lambda: not broadcaster.pending)
                await until(lambda: not broadcaster.pending)
                messages = [
                    each
                    for each in await history(url)
                    if each["type"] == REPORT.delta and each["data"]["runId"] == f"seed{seed}"
                ]
                assert [each["data"]["delta"] for each in messages] == [written[attempt]]


def test_pieces_are_kept_only_while_they_may_be_sent_again() -> None:
    written = GrowingText("k", 1000)
    offset = 0
    while written.state is TextState.FOLDED:
        assert written.append("x" * 16_000) == offset
        offset += 16_000
    assert offset > MAX_TEXT
    piece = RunNotifications(REPORT, "run1").delta("s", 9, "x")
    assert written.placed(piece, offset) == {"data": {**piece.data, "offset": offset}}


def encode_piece(written: GrowingText, piece: Notification, text: str) -> EncodedNotification:
    placed = piece.model_copy(update=written.placed(piece, written.append(text)))
    return encode((request_room("r1"),), placed)


@pytest.mark.parametrize(
    "rejection",
    [
        Rejection("stale_attempt", attempt=1000),  # the run has ended
        Rejection("stale_attempt", attempt=2**31 - 1),
        Rejection("stale_attempt"),
        Rejection("stale_attempt", attempt=1999),
        Rejection("offset_mismatch", offset=3, attempt=1999),
    ],
)
def test_a_text_stops_where_no_number_is_left(rejection: Rejection) -> None:
    written = GrowingText("k", 1000)
    piece = RunNotifications(REPORT, "run1").delta("s", 0, "abc")
    encoded = encode_piece(written, piece, "abc")
    assert written.correct(encoded, {request_room("r1"): rejection}) == []
    assert written.state is TextState.STOPPED


@pytest.mark.parametrize("code", ["forbidden", "unavailable", "rate_limited", "something"])
def test_other_rejections_are_not_corrected(code: str) -> None:
    written = GrowingText("k", 1000)
    piece = RunNotifications(REPORT, "run1").delta("s", 0, "abc")
    encoded = encode_piece(written, piece, "abc")
    assert written.correct(encoded, {request_room("r1"): Rejection(code)}) == []
    assert written.state is TextState.FOLDED
