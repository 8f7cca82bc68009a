"""Test what a job publishes to its user, without a server. Run it with pytest."""

import pytest

from synap_realtime import JobError, progress
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun
from synap_realtime.testing import RealtimeRecorder


async def create_report(run: JobRun) -> dict[str, str]:
    progress(0.5, "Rendering")
    if not run.data.get("title"):
        raise JobError("The report has no title.")
    return {"url": f"/reports/{run.data['title']}.pdf"}


async def test_the_user_gets_the_report(realtime: RealtimeRecorder) -> None:
    realtime.drop_requests()  # the first request is lost; the notifications still arrive
    await run_job("report.creation", create_report, {"title": "Q3", "userId": "42"})
    assert realtime.sent("report.creation.completed")[0].data == {"url": "/reports/Q3.pdf"}
    realtime.assert_order("report.creation.started", "report.creation.completed")
    realtime.assert_single_terminal()


async def test_the_user_reads_why_it_failed(realtime: RealtimeRecorder) -> None:
    with pytest.raises(JobError):
        await run_job("report.creation", create_report, {"userId": "42"})
    assert realtime.sent(user_id="42")[-1].data["error"] == "The report has no title."
