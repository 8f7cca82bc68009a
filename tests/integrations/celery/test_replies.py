"""A reply that grows piece by piece, through Celery workers that fail and hang."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import pytest

from synap_realtime import get_job
from tests.support.polling import until
from tests.support.readers import watch
from tests.support.served_stores import KINDS, serving_store

from . import tasks
from .conftest import Worker

PIECES = 1500
READERS = 8


async def texts(url: str) -> list[str]:
    """Return the texts in the log of the request's room."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        page = (await client.get("/rooms/request_r1/history")).json()
    return [
        each["data"]["delta"] for each in page["notifications"] if each["type"].endswith("delta")
    ]


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
@pytest.mark.parametrize("store", KINDS)
async def test_everyone_gets_the_whole_reply_of_the_execution_that_counts(
    broker: str, tmp_path: Path, store: str, trouble: str
) -> None:
    async with serving_store(store, tmp_path) as rooms:
        environment = {
            "BROKER_URL": broker,
            "REALTIME_URL": rooms,
            "VISIBILITY_TIMEOUT_S": "2" if trouble == "hangs" else "60",
        }
        options = ("--pool", "solo", "-Q", f"replies-{store}-{trouble}")
        workers = [Worker(environment, *options)]
        try:
            tasks.replies.apply_async(
                (str(tmp_path), PIECES, trouble),
                {"user_id": "u1", "request_id": "r1"},
                queue=options[-1],
            )
            readers = [asyncio.create_task(watch(rooms, "r1", n)) for n in range(READERS)]
            if trouble == "hangs":
                await until(lambda: (tmp_path / "execution0").exists())
                workers.append(Worker(environment, *options))
                await until(lambda: (tmp_path / "execution1").exists())
                await until_text_of_the_second(rooms)
                workers[0].signal(signal.SIGCONT)  # the zombie goes on with its own text
            states = await asyncio.gather(*readers)
            (tmp_path / "over").touch()
        finally:
            for worker in workers:
                worker.signal(signal.SIGCONT)
                worker.stop()
        whole = states[0].result["text"]
        assert [state.status for state in states] == ["success"] * READERS
        assert [state.text.encode() for state in states] == [whole.encode()] * READERS
        assert "1 " in whole
        assert "0 " not in whole
        assert await texts(rooms) == [whole]
        job = await get_job("r1", rooms)
        assert job is not None
        assert job.text == whole


async def until_text_of_the_second(rooms: str) -> None:
    """Wait until the second execution has taken the text over."""

    async def is_there() -> bool:
        return any("1 " in text for text in await texts(rooms))

    await until(is_there)
