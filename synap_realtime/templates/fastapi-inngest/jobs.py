"""The jobs. Inngest calls them at ``/api/inngest`` of the web app."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import inngest

from synap_realtime import JobError, delta, progress
from synap_realtime.integrations.inngest import create_function

STAGES = ("Reading the numbers", "Drawing the charts", "Writing the summary")
STEP_S = 0.2
REQUESTED = "report.creation.requested"

# INNGEST_DEV names the server on this machine. Without it, the client uses Inngest's own.
client = inngest.Inngest(app_id="reports", logger=logging.getLogger("uvicorn.error"))


async def work(number: int, failures: int, attempt: int) -> None:
    """Do the work of one stage. The page of the user sees each call of ``progress``.

    Args:
        failures: the number of attempts that fail, to show what the page makes of retries.
    """
    for update in range(5):
        progress((number + update / 5) / len(STAGES), STAGES[number])
        await asyncio.sleep(STEP_S)
    if number == 1 and attempt < failures:
        # The message of a JobError is for the user; other exceptions show a general message.
        raise JobError("The chart printer is out of ink.")


async def write(title: str) -> str:
    """Write the summary. The page of the user sees each word."""
    words = f"{title}: all numbers are up, and the charts agree.".split(" ")
    for word in words:
        delta(f"{word} ")
        await asyncio.sleep(STEP_S)
    return " ".join(words)


@create_function(
    client,
    job_type="report.creation",
    fn_id="create-report",
    trigger=inngest.TriggerEvent(event=REQUESTED),
    retries=3,
)
async def create_report(ctx: inngest.Context) -> dict[str, Any]:
    """Write a report. Steps that are done are not repeated when a later one fails."""
    title = str(ctx.event.data["title"])
    failures = int(str(ctx.event.data.get("failures", 0)))
    for number, stage in enumerate(STAGES):
        await ctx.step.run(stage, work, number, failures, ctx.attempt)
    return {"title": title, "text": await ctx.step.run("write", write, title)}
