"""Background publishing keeps the order, never blocks the caller and loses nothing it can keep."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from synap_realtime import BackgroundBroadcaster, InvalidArgumentError
from synap_realtime.broadcast.encoding import normalize
from synap_realtime.protocol.rooms import user_room
from synap_realtime.server import create_app
from synap_realtime.server.serve import running_server
from synap_realtime.testing import RealtimeRecorder
from tests.support.polling import until
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _real_waits(monkeypatch: pytest.MonkeyPatch, _short_waits: None) -> None:
    """An outage must last long enough to be seen."""
    monkeypatch.undo()


def post(broadcaster: BackgroundBroadcaster, n: int, **data: Any) -> None:
    broadcaster.broadcast_notification(user_id="1", message={"type": "a", "data": {"n": n, **data}})


def numbers(realtime: RealtimeRecorder) -> list[int]:
    return [sent.data["n"] for sent in realtime.sent()]


def test_many_go_in_few_requests_and_in_order() -> None:
    sizes: list[int] = []

    class Counting(RealtimeRecorder):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            sizes.append(len(request.read()))
            return super().handle_request(request)

    realtime = Counting()
    realtime.delay_requests(0.1)  # meanwhile the others gather
    with BackgroundBroadcaster(transport=realtime) as broadcaster:
        for n in range(950):
            post(broadcaster, n)
        for n in range(950, 970):
            post(broadcaster, n, text="x" * 200_000)
        assert broadcaster.flush(30)
    assert [n.data["n"] for n in realtime.received] == list(range(970))
    assert len(sizes) < 25
    assert max(sizes) <= 1024 * 1024


async def test_a_flush_between_the_response_and_the_end_of_its_request_waits_for_that(
    realtime: RealtimeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        answered.set()
        go_on.wait(TIMEOUT_S)

    with realtime.broadcaster() as broadcaster:
        monkeypatch.setattr(broadcaster, "_on_recovered", hold)
        post(broadcaster, 0)
        await asyncio.to_thread(answered.wait, TIMEOUT_S)
        flushed = asyncio.create_task(asyncio.to_thread(broadcaster.flush, TIMEOUT_S))
        await until(lambda: flushed.done() or broadcaster._waiters)
        go_on.set()
        assert await flushed
        assert await broadcaster.aflush()


def test_logs_an_unavailable_server_once_without_waiting_for_it(
    realtime: RealtimeRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    broadcaster = realtime.broadcaster()
    realtime.drop_requests(4)
    with caplog.at_level(logging.INFO, "synap_realtime"):
        post(broadcaster, 0)
        broadcaster.flush()  # until it is known
        assert broadcaster.is_unavailable
        for n in range(1, 500):
            post(broadcaster, n)
            broadcaster.flush(timeout_s=1000)  # if it waited, the test would not end
        assert numbers(realtime) == list(range(500))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "could not be reached" in said[0]
    assert "reconnected to" in said[1]
    assert "0 notifications were dropped" in said[1]


def test_drops_the_oldest_when_full_and_logs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    realtime = RealtimeRecorder()
    realtime.drop_requests(3)
    with BackgroundBroadcaster(transport=realtime, max_pending=10) as broadcaster:
        post(broadcaster, 0)
        broadcaster.flush()
        for n in range(1, 31):
            post(broadcaster, n)
    assert [n.data["n"] for n in realtime.received] == [0, *range(21, 31)]
    assert caplog.text.count(": more than 10 notifications are pending") == 1
    assert "20 notifications were dropped" in caplog.text


def test_logs_a_refusal_once(realtime: RealtimeRecorder, caplog: pytest.LogCaptureFixture) -> None:
    broadcaster = realtime.broadcaster()
    realtime.fail_requests(401, times=3)
    for n in range(3):
        post(broadcaster, n)
        broadcaster.flush()
    assert caplog.text.count(" for user_1 was rejected: ") == 1
    assert not broadcaster.is_unavailable
    post(broadcaster, 3)
    assert numbers(realtime) == [3]


def test_invalid_message_raises_in_the_caller(realtime: RealtimeRecorder) -> None:
    broadcaster = realtime.broadcaster()
    with pytest.raises(InvalidArgumentError, match="user_id"):
        broadcaster.broadcast_notification(message={"type": "a", "data": {}})
    with pytest.raises(InvalidArgumentError, match="data"):
        post(broadcaster, 1, text="x" * 300_000)
    assert realtime.sent() == []


def test_a_notification_that_spoils_its_batch_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A proxy with its own limit, or an unknown check."""

    class Picky(RealtimeRecorder):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if b'"n":4' in request.read():
                return httpx.Response(413, json={"error": "Too large", "code": "payload_too_large"})
            return super().handle_request(request)

    realtime = Picky()
    realtime.delay_requests(0.1)
    with BackgroundBroadcaster(transport=realtime) as broadcaster:
        for n in range(9):
            post(broadcaster, n)
        assert broadcaster.flush(30)
    assert [n.data["n"] for n in realtime.received] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert caplog.text.count(" was rejected: ") == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500, json={"error": "Misconfigured", "code": "misconfigured"}),
        httpx.Response(
            200,
            json={"results": [{"success": False, "error": "No room", "code": "unavailable"}]},
        ),
    ],
    ids=["misconfigured", "unavailable"],
)
def test_a_server_that_needs_its_operator_is_an_outage(
    answer: httpx.Response, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(RealtimeRecorder):
        is_broken = True

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return answer if self.is_broken else super().handle_request(request)

    realtime = Broken()
    with BackgroundBroadcaster(transport=realtime) as broadcaster:
        post(broadcaster, 0)
        broadcaster.flush()
        assert broadcaster.is_unavailable
        realtime.is_broken = False
    assert [n.data["n"] for n in realtime.received] == [0]
    said = [record.getMessage() for record in caplog.records]
    assert ["buffering" in said[0], "reconnected" in said[1], len(said)] == [True, True, 2]
    assert answer.json().get("error", "No room") in said[0]


def test_broadcast_after_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    realtime = RealtimeRecorder()
    broadcaster = BackgroundBroadcaster(transport=realtime)
    post(broadcaster, 1)
    broadcaster.close()
    post(broadcaster, 2)
    broadcaster.close()
    assert [n.data["n"] for n in realtime.received] == [1]
    assert "the broadcaster is closed" in caplog.text


def test_close_logs_what_it_could_not_send(caplog: pytest.LogCaptureFixture) -> None:
    broadcaster = BackgroundBroadcaster("http://127.0.0.1:9")
    for n in range(3):
        post(broadcaster, n)
    broadcaster.close(timeout_s=0.05)
    assert "lost 3 notifications for http://127.0.0.1:9: they could not be sent" in caplog.text


def test_close_waits_for_a_server_that_recovers(realtime: RealtimeRecorder) -> None:
    realtime.drop_requests(3)
    with BackgroundBroadcaster(transport=realtime) as broadcaster:
        post(broadcaster, 1)
        broadcaster.flush()
        assert broadcaster.is_unavailable
    assert numbers(realtime) == [1]


def test_several_event_loops_share_one(realtime: RealtimeRecorder) -> None:
    broadcaster = realtime.broadcaster()

    async def use(n: int) -> None:
        post(broadcaster, n)
        assert await broadcaster.aflush()

    for n in range(3):
        asyncio.run(use(n))
    assert numbers(realtime) == [0, 1, 2]


def test_waiting_for_a_notification_makes_it_due(realtime: RealtimeRecorder) -> None:
    broadcaster = realtime.broadcaster()
    notification = normalize({"type": "a", "data": {"n": 1}})
    posted = broadcaster.post((user_room("1"),), notification, due=time.monotonic() + 1000)
    broadcaster.wait_sent(posted, timeout_s=1000)
    assert posted.result is not None


def test_a_transport_that_breaks_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Breaking(RealtimeRecorder):
        broken = True

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if self.broken:
                self.broken = False
                raise ZeroDivisionError
            return super().handle_request(request)

    realtime = Breaking()
    with BackgroundBroadcaster(transport=realtime) as broadcaster:
        for n in range(2):
            post(broadcaster, n)
            broadcaster.flush()
    assert [n.data["n"] for n in realtime.received] == [1]
    assert "lost " in caplog.text


SCRIPT = """
import os, sys
from synap_realtime.broadcast import background_broadcaster

def post(n):
    message = {"type": "a", "data": {"n": n}}
    background_broadcaster().broadcast_notification(user_id="1", message=message)

post(0)
background_broadcaster().flush()
if "fork" in sys.argv:
    post(1)  # the parent's: it may still wait here when the child is made
    child = os.fork()
    if child == 0:
        post(2)
        background_broadcaster().flush()
        os._exit(0)
    os.waitpid(child, 0)
post(3)  # and the process ends
"""


@pytest.mark.parametrize("how", ["end", "fork"])
async def test_process_and_its_forks_send_everything_once(how: str) -> None:
    async with running_server(create_app()) as url, asyncio.timeout(2 * TIMEOUT_S):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SCRIPT, how, cwd=ROOT,
            env={**os.environ, "REALTIME_URL": url}, stderr=subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        async with httpx.AsyncClient() as client:
            answer = (await client.get(f"{url}/rooms/user_1/history")).json()
    values = [m["data"]["n"] for m in answer["notifications"]]
    assert sorted(values) == ([0, 3] if how == "end" else [0, 1, 2, 3])
    assert [n for n in values if n != 2] == sorted(n for n in values if n != 2)
