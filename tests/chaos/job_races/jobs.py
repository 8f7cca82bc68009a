"""Jobs with a random course, and what is to be seen of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass

from synap_realtime import BackgroundBroadcaster, JobError, delta, progress
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun

WORDS = ("tok ", "é", "😀 ", "\n", '"x" ')
MAX_RETRIES = 2


@dataclass(frozen=True, slots=True)
class Course:
    """What a job does.

    Attributes:
        texts: the pieces that each attempt writes; an attempt before the last one fails.
        ending: of the last attempt.
        duration_s: of the whole job, about.
    """

    request_id: str
    texts: tuple[tuple[str, ...], ...]
    ending: str
    duration_s: float

    @property
    def text(self) -> str:
        """The text that is to be seen at the end: of the last attempt that has written one."""
        return next(("".join(pieces) for pieces in reversed(self.texts) if pieces), "")

    def has_written(self, text: str) -> bool:
        """Return whether a text is the beginning of one that an attempt writes."""
        return any("".join(pieces).startswith(text) for pieces in self.texts)


def random_course(chance: random.Random, request_id: str) -> Course:
    attempts = chance.choice([1, 1, 1, 2, 3])
    texts = tuple(
        tuple(chance.choices(WORDS, k=chance.choice([0, 1, 3, 10]))) for _ in range(attempts)
    )
    ending = chance.choice(["completed", "completed", "failed", "cancelled"])
    if ending == "failed":  # when no retry is left
        texts = (*texts, *((("last ",),) * (MAX_RETRIES + 1 - len(texts))))
    return Course(request_id, texts, ending, chance.uniform(0.05, 0.6))


async def play(course: Course, user_id: str, broadcaster: BackgroundBroadcaster) -> None:
    """Run the job."""
    attempt = 0

    async def work(run: JobRun) -> dict[str, str]:
        nonlocal attempt
        pieces, attempt = course.texts[attempt], attempt + 1
        for number, piece in enumerate(pieces):
            delta(piece)
            progress(number / len(pieces), f"Piece {number}")
            await asyncio.sleep(course.duration_s / len(course.texts) / (len(pieces) + 1))
        await asyncio.sleep(course.duration_s / len(course.texts) / (len(pieces) + 1))
        if attempt < len(course.texts) or course.ending == "failed":
            raise JobError(f"attempt {attempt} failed")
        if course.ending == "cancelled":
            raise asyncio.CancelledError
        return {"of": course.request_id}

    data = {"userId": user_id, "requestId": course.request_id}
    with contextlib.suppress(JobError, asyncio.CancelledError):
        await run_job(
            *("race.run", work, data),
            retries=MAX_RETRIES,
            initial_backoff_s=0.01,
            broadcaster=broadcaster,
        )
