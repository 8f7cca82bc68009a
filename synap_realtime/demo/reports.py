"""A job that takes some seconds: it writes a report in stages, each with progress and a label."""

from __future__ import annotations

import asyncio
from typing import TypedDict

import inngest

from ..broadcast import BackgroundBroadcaster
from ..errors import JobError
from ..handlers import Storage
from ..integrations.inngest import create_function
from ..jobs import JobType, progress

STAGES = ("Reading the notes", "Counting the tasks", "Drawing the charts", "Writing the summary")
TROUBLED_STAGE = 2
UPDATES = 5
UPDATE_S = 0.35


class ReportCreated(TypedDict):
    title: str
    fileUrl: str


REPORT_CREATION = JobType("report.creation", payload=ReportCreated)


def create_report_function(
    client: inngest.Inngest, storage: Storage, broadcaster: BackgroundBroadcaster
) -> inngest.Function[object]:
    """Return the function of ``report.creation``.

    With ``trouble``, its third stage fails twice, so that the page shows two retries.
    """

    @create_function(
        client,
        job_type=REPORT_CREATION,
        fn_id="report-creation",
        trigger=inngest.TriggerEvent(event=REPORT_CREATION.trigger_event),
        broadcaster=broadcaster,
    )
    async def create_report(ctx: inngest.Context) -> ReportCreated:
        data = ctx.event.data
        title = str(data["title"])

        async def work(stage: int) -> None:
            for update in range(UPDATES):
                progress((stage + update / UPDATES) / len(STAGES), STAGES[stage])
                await asyncio.sleep(UPDATE_S)
                if stage == TROUBLED_STAGE and data.get("trouble") and ctx.attempt < 2:
                    raise JobError("The chart printer is out of ink.")

        async def upload() -> str:
            lines = [f"# {title}", "", *(f"- {stage}: done" for stage in STAGES), ""]
            path = f"users/{data['userId']}/reports/{ctx.run_id}.md"
            return await storage.put(path, "\n".join(lines).encode(), "text/markdown")

        for stage, label in enumerate(STAGES):
            await ctx.step.run(label, work, stage)
        return {"title": title, "fileUrl": await ctx.step.run("upload", upload)}

    return create_report
