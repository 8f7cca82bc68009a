"""Run races: see the package."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from synap_realtime import BackgroundBroadcaster, follow_job, get_job, list_jobs
from tests.support.program import Program
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import wait_setter

from .jobs import Course, play, random_course
from .watchers import Watched, Watchers, watchers

WAVE = 40
"""Jobs at a time."""
FOLLOWERS = 3
LIMITS = {
    "SYNAP_REALTIME_NEW_CONNECTIONS_PER_S": "0",
    "SYNAP_REALTIME_REQUESTS_PER_S": "0",
    "SYNAP_REALTIME_MAX_CONNECTIONS_PER_USER": "0",
}


@dataclass
class Races:
    """Races on one server.

    Attributes:
        browser: follows the jobs, too, if there is one.
        faults: what was seen that the job had not done.
    """

    server: Program
    chance: random.Random
    browser: Watchers | None = None
    faults: list[str] = field(default_factory=list)
    races: int = 0
    kills: int = 0

    async def wave(self, count: int) -> None:
        """Run jobs at the same time, and kill the server once or twice meanwhile."""
        user = f"u{self.races}"
        courses = [random_course(self.chance, f"r{self.races + number}") for number in range(count)]
        self.races += count
        async with (
            BackgroundBroadcaster(self.server.url) as broadcaster,
            asyncio.TaskGroup() as tasks,
        ):
            if self.browser is not None:
                delays_s = {each.request_id: self.chance.uniform(0, 0.8) for each in courses}
                watching = self.browser.watch(self.server.url, user, delays_s)
                watched = tasks.create_task(watching)
            for course in courses:
                tasks.create_task(play(course, user, broadcaster))
                for _ in range(FOLLOWERS):
                    tasks.create_task(self.follow(course, self.chance.uniform(0, 0.8)))
            tasks.create_task(self.kill())
        await self.compare(courses, user)
        if self.browser is not None:
            self.compare_page(courses, watched.result())

    async def kill(self) -> None:
        for _ in range(self.chance.choice([1, 1, 2])):
            await asyncio.sleep(self.chance.uniform(0.02, 0.5))
            await self.server.kill()
            self.kills += 1
            await asyncio.sleep(self.chance.uniform(0, 0.1))
            await self.server.start()

    async def follow(self, course: Course, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        state = None
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                aclosing(follow_job(course.request_id, self.server.url)) as states,
            ):
                async for state in states:
                    if not course.has_written(state.text):
                        self.faults.append(f"a wrong text: {state}, but {course}")
                    if not state.is_text_complete:
                        self.faults.append(f"an incomplete text: {state}, but {course}")
        except TimeoutError:
            self.faults.append(f"{course.request_id}: stuck at {state}")
            return
        expected = "success" if course.ending == "completed" else "error"
        assert state is not None
        if (state.status, state.text, state.is_text_complete) != (expected, course.text, True):
            self.faults.append(f"follower after {delay_s:.3f} s: {state}, but {course}")

    async def compare(self, courses: list[Course], user: str) -> None:
        """Compare the records and the logs with what the jobs have done."""
        listed = await list_jobs(user, self.server.url, limit=1000)
        statuses = {job.request_id: job.status for job in listed.jobs}
        if statuses != {course.request_id: course.ending for course in courses}:
            self.faults.append(f"list of {user}: {statuses}")
        async with httpx.AsyncClient(base_url=self.server.url, trust_env=False) as http:
            for course in courses:
                job = await get_job(course.request_id, self.server.url)
                if job is None or (job.status, job.text or "") != (course.ending, course.text):
                    self.faults.append(f"record: {job}, but {course}")
                response = await http.get(f"/rooms/request_{course.request_id}/history")
                log = response.json()["notifications"]
                endings = [each for each in log if each["status"] != "pending"]
                if len(endings) != 1:
                    self.faults.append(f"{len(endings)} endings in the log: {course}")

    def compare_page(self, courses: list[Course], watched: Watched) -> None:
        """Compare what the page has shown with what the jobs have done."""
        self.faults += watched.faults
        if watched.listed != {course.request_id: course.ending for course in courses}:
            self.faults.append(f"useJobs: {watched.listed}")
        for course in courses:
            expected = "success" if course.ending == "completed" else "error"
            if watched.seen.get(course.request_id) != (expected, course.text):
                self.faults.append(f"useJob: {watched.seen.get(course.request_id)}, but {course}")


async def run(kind: str, folder: Path, races: int, seed: int, *, has_browser: bool) -> Races:
    """Run races.

    Args:
        kind: ``sqlite``, or the URL of a store that survives the server.
        has_browser: follow the jobs in Chromium, too.
    """
    store = f"sqlite:///{folder / 'rooms.db'}" if kind == "sqlite" else kind
    server = Program(store, **LIMITS)
    await server.start()
    found = Races(server, random.Random(seed))
    try:
        async with AsyncExitStack() as stack:
            if has_browser:
                found.browser = await stack.enter_async_context(watchers(folder))
            wait_setter(stack.enter_context(pytest.MonkeyPatch.context()))(
                initial_delay_s=0.05, max_delay_s=0.2
            )
            while found.races < races and len(found.faults) < 10:
                await found.wave(min(WAVE, races - found.races))
    finally:
        await server.kill()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Let jobs end while their server is killed.")
    parser.add_argument("--store", default="sqlite", help="sqlite, or a store's URL")
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--browser", action="store_true", help="follow in Chromium, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(
            run(given.store, Path(folder), given.races, given.seed, has_browser=given.browser)
        )
    print(
        f"{found.races} races, {found.races * FOLLOWERS} followers, {found.kills} kills: ", end=""
    )
    print(*(found.faults or ["every state was that of the job"]), sep="\n")
    return bool(found.faults)


if __name__ == "__main__":
    sys.exit(main())
