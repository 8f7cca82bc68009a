"""What a job publishes. The fixture ``realtime`` records it in place of a room server."""

import os

import inngest
import inngest.fast_api
import jobs
import pytest
from fastapi import FastAPI

from synap_realtime.integrations.inngest.local import Backoff, LocalInngest
from synap_realtime.server.serve import running_server
from synap_realtime.testing import RealtimeRecorder


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "STEP_S", 0)


async def run(failures: int = 0) -> None:
    """Run the job by an Inngest server inside this process."""
    port = int(os.environ["INNGEST_DEV"].rpartition(":")[2])
    app = FastAPI()
    inngest.fast_api.serve(app, jobs.client, [jobs.create_report])
    local = LocalInngest(backoff=Backoff(first_s=0.01))
    async with running_server(app) as url, running_server(local, port=port):
        await local.register(f"{url}/api/inngest")
        data: dict[str, str | int] = {"title": "Q3", "userId": "42", "requestId": "r1"}
        data["failures"] = failures
        await jobs.client.send(inngest.Event(name=jobs.REQUESTED, data=data))
        await local.idle()


async def test_user_gets_the_report(realtime: RealtimeRecorder) -> None:
    await run()
    realtime.assert_order("report.creation.started", "report.creation.completed")
    realtime.assert_single_terminal()
    (completed,) = realtime.sent("report.creation.completed", user_id="42")
    assert completed.data["title"] == "Q3"
    assert realtime.text(request_id="r1").startswith("Q3: all numbers")


async def test_user_sees_each_retry(realtime: RealtimeRecorder) -> None:
    await run(failures=2)
    retries = realtime.sent("report.creation.retrying", request_id="r1")
    assert [each.data["attempt"] for each in retries] == [2, 3]
    assert retries[0].data["error"] == "The chart printer is out of ink."
    realtime.assert_single_terminal()


async def test_lost_requests_do_not_lose_notifications(realtime: RealtimeRecorder) -> None:
    realtime.drop_requests(2)
    await run()
    realtime.assert_single_terminal()
