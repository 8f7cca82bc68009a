"""The text of a job on the Worker: attempts and executions of the SDK, and readers who reload."""

from __future__ import annotations

import asyncio
import uuid

from synap_realtime import BackgroundBroadcaster, get_job
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications
from tests.support.readers import watch

PIECES = 300


async def test_everyone_gets_the_whole_text_of_the_execution_that_counts(open_worker: str) -> None:
    request, run_id = uuid.uuid4().hex, uuid.uuid4().hex
    async with BackgroundBroadcaster(open_worker) as broadcaster:

        def execution(attempt: int) -> Reporter:
            run = RunNotifications(JobType("report.creation"), run_id, attempt)
            return Reporter(run, [Recipient(uuid.uuid4().hex, request)], broadcaster)

        readers = [asyncio.create_task(watch(open_worker, request, n)) for n in range(6)]
        executions = [execution(1), execution(1), execution(2)]
        executions[0].started()
        texts = ["", "", ""]
        for number, writer in enumerate(executions):
            for n in range(PIECES):
                piece = f"{number}é{n}😀\n"
                texts[number] += piece
                writer.delta(piece)
                for zombie in executions[:number]:
                    zombie.delta("zombie")
                await asyncio.sleep(0.002)
            if number == 1:
                writer.retrying("Again.")
        executions[2].completed({"pages": 3})
        states = await asyncio.gather(*readers)
    assert [(state.status, state.text) for state in states] == [("success", texts[2])] * 6
    job = await get_job(request, open_worker)
    assert job is not None
    assert (job.status, job.text) == ("completed", texts[2])
