"""The test kit records broadcasts as a room server would store them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from synap_realtime import (
    AsyncBroadcaster,
    Broadcaster,
    InvalidArgumentError,
    broadcast_error,
    broadcast_notification_sync,
    broadcast_success,
    broadcast_success_sync,
)
from synap_realtime.broadcast import background_broadcaster
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications
from synap_realtime.testing import RealtimeRecorder, record

REPORT = JobType("report.creation")


async def send(kind: str, id: str = "n1", **options: Any) -> Any:
    """One notification by each way there is."""
    message = {"id": id, "type": "a.completed", "data": {}, "status": "success"}
    match kind:
        case "async":
            return await broadcast_success("42", "a.completed", {}, "r1", id=id)
        case "sync":
            return await asyncio.to_thread(
                broadcast_success_sync, "42", "a.completed", {}, "r1", id=id
            )
        case _:
            return background_broadcaster().broadcast_notification(
                user_id="42", request_id="r1", message=message
            )


KINDS = pytest.mark.parametrize("kind", ["async", "sync", "background"])


@KINDS
async def test_broadcasts_are_recorded(realtime: RealtimeRecorder, kind: str) -> None:
    await send(kind)
    (sent,) = realtime.sent("a.completed")
    assert (sent.id, sent.status, sent.data) == ("n1", "success", {})
    assert sent.rooms == ["user_42", "request_r1"]
    assert realtime.sent(user_id="42", request_id="r1") == [sent]
    assert realtime.sent(room="request_r1") == realtime.sent() == [sent]
    assert realtime.sent("b.completed") == realtime.sent(user_id="43") == []
    realtime.clear()
    assert realtime.sent() == []


@KINDS
@pytest.mark.parametrize("fault", ["drop_requests", "fail_requests"])
async def test_lost_requests_are_retried(realtime: RealtimeRecorder, kind: str, fault: str) -> None:
    getattr(realtime, fault)(times=2)
    await send(kind)
    assert len(realtime.sent()) == len(realtime.received) == 1


@KINDS
@pytest.mark.parametrize("fault", ["duplicate_requests", "drop_responses"])
async def test_duplicates_are_delivered_once(
    realtime: RealtimeRecorder, kind: str, fault: str
) -> None:
    getattr(realtime, fault)()
    await send(kind)
    assert len(realtime.sent()) == 1
    assert len(realtime.received) == 2


@KINDS
async def test_delayed_requests_arrive(realtime: RealtimeRecorder, kind: str) -> None:
    realtime.delay_requests(0.05)
    await send(kind)
    assert len(realtime.sent()) == 1


async def test_a_fault_may_hit_one_type_only(realtime: RealtimeRecorder) -> None:
    realtime.fail_requests(400, type="b.failed")
    assert (await broadcast_success("42", "a.completed", {})).success
    result = await broadcast_error("42", "b.failed", "No.")
    assert (result.success, result.attempts) == (False, 1)
    assert realtime.types() == ["a.completed"]


async def test_custom_broadcasters_are_recorded(realtime: RealtimeRecorder) -> None:
    async with AsyncBroadcaster(transport=realtime) as broadcaster:
        assert (await broadcaster.broadcast_success("1", "a", {})).success
    with Broadcaster(transport=realtime) as sync_broadcaster:
        assert sync_broadcaster.broadcast("workspace_7", {"type": "b", "data": {}}).success
    realtime.broadcaster().broadcast_notification(user_id="1", message={"type": "c", "data": {}})
    assert sorted(realtime.types()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/broadcast", b"nonsense", 400),
        ("/broadcast", b"[]", 400),
        ("/broadcast", b'{"notifications":[{"type":"a","data":{},"rooms":["nope"]}]}', 200),
        ("/rooms/nope/broadcast", b'{"type":"a","data":{}}', 400),
        ("/rooms/user_1/broadcast", b'{"type":"a"}', 400),
        ("/rooms/user_1/broadcast", b'{"type":"a","data":{}}', 200),
        ("/elsewhere", b"{}", 404),
    ],
)
def test_refuses_invalid_notifications_as_a_room_server_does(
    realtime: RealtimeRecorder, path: str, body: bytes, status: int
) -> None:
    with httpx.Client(transport=realtime, base_url="http://rooms") as client:
        answer = client.post(path, content=body)
    assert answer.status_code == status
    assert answer.json()["success" if status == 200 else "code"] in (
        path != "/broadcast",
        "invalid_request",
        "not_found",
    )


def publish(*notifications: Any) -> None:
    for notification in notifications:
        broadcast_notification_sync(user_id="42", message=notification)


Check = Callable[[RealtimeRecorder], None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no run"),
        (["started"], "0 terminal notifications"),
        (["started", "completed", "progress"], "has notifications after its terminal one"),
        (["started", "other"], "2 terminal notifications"),
        (["started", "completed"], None),
    ],
)
def test_assert_single_terminal_rejects_other_counts(
    realtime: RealtimeRecorder, words: list[str], said: str | None
) -> None:
    run = RunNotifications(REPORT, "r7")
    all_of_it: dict[str, Any] = {
        "started": [run.started()],
        "progress": [run.progress("1", 0.5, None, None)],
        "completed": [run.completed({})],
        "other": [
            run.completed({}),
            {"type": "x.failed", "data": {"runId": "r7"}, "status": "error"},
        ],
    }
    for word in words:
        publish(*all_of_it[word])
    if said is None:
        realtime.assert_single_terminal()
        realtime.assert_single_terminal("r7")
        with pytest.raises(AssertionError, match="run r8 has no notifications"):
            realtime.assert_single_terminal("r8")
    else:
        with pytest.raises(AssertionError, match=said):
            realtime.assert_single_terminal()


def test_the_order_is_asserted(realtime: RealtimeRecorder) -> None:
    run = RunNotifications(REPORT, "r7")
    publish(run.started(), run.progress("1", 0.5, None, None), run.completed({}))
    realtime.assert_order(REPORT.started, REPORT.completed)
    with pytest.raises(AssertionError, match=r"started is missing, or was received too early\n"):
        realtime.assert_order(REPORT.completed, REPORT.started)


def test_recordings_are_isolated(realtime: RealtimeRecorder) -> None:
    broadcast_success_sync("1", "outer", {})
    with record() as inner:
        broadcast_success_sync("1", "inner", {})
        background_broadcaster().broadcast_notification(
            user_id="1", message={"type": "late", "data": {}}
        )
    broadcast_success_sync("1", "outer again", {})
    assert sorted(inner.types()) == ["inner", "late"]
    assert realtime.types() == ["outer", "outer again"]


def test_shows_the_text_and_the_state_of_a_job_as_a_page_does(realtime: RealtimeRecorder) -> None:
    broadcaster = realtime.broadcaster()
    who = Recipient("42", "r1")

    def attempt(number: int) -> Reporter:
        run = RunNotifications(REPORT, "run1", number)
        return Reporter(run, [who], broadcaster)

    assert realtime.job(request_id="r1") is None
    assert realtime.text(request_id="r1") == ""
    zombie = attempt(1)
    zombie.started()
    for piece in ("Hal", "f a text"):
        zombie.delta(piece)
        assert realtime.text(request_id="r1").endswith(piece)
    second = attempt(2)
    second.progress(0.5, "Writing")
    second.delta("The whole")
    running = realtime.job(request_id="r1")
    assert running is not None
    assert (running.status, running.progress, running.label) == ("running", 0.5, "Writing")
    zombie.delta(" of a zombie")
    second.completed({"pages": 3})
    job = realtime.job(request_id="r1")
    assert job is not None
    assert (job.status, job.result, job.text) == ("completed", {"pages": 3}, "The whole")
    assert realtime.job(user_id="42") == replace(job, text=None)
    assert [each.data["delta"] for each in realtime.sent("report.creation.delta")] == [
        "Hal", "f a text", "The whole",
    ]  # fmt: skip
    realtime.assert_single_terminal()


@pytest.mark.parametrize("who", [{}, {"user_id": "1", "request_id": "2"}])
def test_a_job_is_one_of_a_user_or_of_a_request(
    realtime: RealtimeRecorder, who: dict[str, str]
) -> None:
    with pytest.raises(InvalidArgumentError, match="user_id or a request_id"):
        realtime.job(**who)
