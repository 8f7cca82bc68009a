"""The jobs. Workers run them: ``celery -A config worker``."""

from __future__ import annotations

import time
from typing import Any

import celery

from synap_realtime import JobError, delta, progress
from synap_realtime.integrations.celery import RealtimeTask

STAGES = ("Reading the numbers", "Drawing the charts", "Writing the summary")
STEP_S = 0.2


@celery.shared_task(base=RealtimeTask, job_type="report.creation", bind=True, max_retries=3)
def create_report(
    self: Any, title: str, *, failures: int = 0, user_id: str, request_id: str | None = None
) -> dict[str, str]:
    """Write a report. The page of the user sees each call of ``progress`` and ``delta``.

    Args:
        failures: the number of attempts that fail, to show what the page makes of retries.
    """
    for number, stage in enumerate(STAGES):
        for update in range(5):
            progress((number + update / 5) / len(STAGES), stage)
            time.sleep(STEP_S)
        if number == 1 and self.request.retries < failures:
            # The message of a JobError is for the user; other exceptions show a general message.
            raise self.retry(exc=JobError("The chart printer is out of ink."), countdown=2)
    words = f"{title}: all numbers are up, and the charts agree.".split(" ")
    for word in words:
        delta(f"{word} ")
        time.sleep(STEP_S)
    return {"title": title, "text": " ".join(words)}
