"""People who watch a job on a page that they reload at random moments."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

from synap_realtime import JobState, follow_job
from tests.support.timeouts import TIMEOUT_S


async def watch(url: str, request_id: str, seed: int) -> JobState:
    """Follow a job, with reloads at random moments. Return its last state.

    Raises:
        AssertionError: a text that was shown was incomplete.
    """
    chance = random.Random(seed)
    async with asyncio.timeout(6 * TIMEOUT_S):
        await asyncio.sleep(chance.random())
        while True:
            reload_at = asyncio.get_running_loop().time() + chance.uniform(0.02, 0.8)
            async with aclosing(follow_job(request_id, url)) as states:
                async for state in states:
                    assert state.is_text_complete
                    if state.is_finished:
                        return state
                    if asyncio.get_running_loop().time() > reload_at:
                        break
