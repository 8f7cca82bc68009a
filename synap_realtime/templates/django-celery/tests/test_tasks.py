"""What a job publishes. The fixture ``realtime`` records it in place of a room server."""

import pytest
from reports import tasks

from synap_realtime.testing import RealtimeRecorder


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "STEP_S", 0)


def run(**arguments: object) -> None:
    names = {"title": "Q3", "user_id": "42", "request_id": "r1"}
    tasks.create_report.apply(kwargs=names | arguments)


def test_user_gets_the_report(realtime: RealtimeRecorder) -> None:
    run()
    realtime.assert_order("report.creation.started", "report.creation.completed")
    realtime.assert_single_terminal()
    (completed,) = realtime.sent("report.creation.completed", user_id="42")
    assert completed.data["title"] == "Q3"
    assert realtime.text(request_id="r1").startswith("Q3: all numbers")


def test_user_sees_each_retry(realtime: RealtimeRecorder) -> None:
    run(failures=2)
    retries = realtime.sent("report.creation.retrying", request_id="r1")
    assert [each.data["attempt"] for each in retries] == [2, 3]
    assert retries[0].data["error"] == "The chart printer is out of ink."
    realtime.assert_single_terminal()


def test_lost_requests_do_not_lose_notifications(realtime: RealtimeRecorder) -> None:
    realtime.drop_requests(2)
    run()
    realtime.assert_single_terminal()
