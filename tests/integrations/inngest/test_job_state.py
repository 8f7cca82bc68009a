"""The record of a job on Inngest, which counts the attempts of each step from 1."""

from __future__ import annotations

import time

import inngest

from synap_realtime import JobError, get_job, get_job_sync, progress
from tests.integrations.inngest.functions import REPORT, function
from tests.support.timeouts import TIMEOUT_S

from .conftest import Stage


async def test_progress_of_a_step_counts_after_retries_of_the_step_before(stage: Stage) -> None:
    shown: list[tuple[float | None, str | None]] = []

    def print_pages(attempt: int) -> None:
        progress(0.1 * (attempt + 1), "printing")
        if attempt < 2:
            raise JobError("The printer is busy.")

    def bind() -> None:
        progress(0.75, "binding")
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            job = get_job_sync("r1", stage.rooms_url)
            if job is not None and job.label == "binding":
                shown.append((job.progress, job.label))
                return
            time.sleep(0.02)

    def body(ctx: inngest.ContextSync) -> str:
        ctx.step.run("print", print_pages, ctx.attempt)
        ctx.step.run("bind", bind)
        return "done"

    await stage.serve(function(stage, "sync", body, retries=3))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert shown == [(0.75, "binding")]
    job = await get_job("r1", stage.rooms_url)
    assert job is not None
    assert (job.type, job.status, job.result) == (REPORT, "completed", {"result": "done"})
    assert (job.user_id, job.max_attempts, job.error) == ("42", 4, None)
