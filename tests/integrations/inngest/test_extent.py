"""No server leaks a function's reporter to other code: every room is searched."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.timeouts import TIMEOUT_S

from .conftest import Stage

ROOT = Path(__file__).parents[3]
APP = "tests.integrations.inngest.extent_app"

UVICORN = [sys.executable, "-m", "uvicorn", f"{APP}:asgi", "--fd", "{fd}", "--log-level", "warning"]
GUNICORN = [sys.executable, "-m", "gunicorn", f"{APP}:app", "--preload", "-b", "fd://{fd}"]

SERVERS = {
    "uvicorn": UVICORN,
    "gunicorn sync": [*GUNICORN, "-w", "2"],
    "gunicorn gthread": [*GUNICORN, "-w", "1", "-k", "gthread", "--threads", "3"],
    "gunicorn gevent": [*GUNICORN, "-w", "1", "-k", "gevent"],
}


@asynccontextmanager
async def serving(stage: Stage, server: str, kind: str) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        os.set_inheritable(listener.fileno(), True)
        with subprocess.Popen(  # noqa: ASYNC220
            [each.format(fd=listener.fileno()) for each in SERVERS[server]],
            cwd=ROOT,
            env={
                **os.environ,
                "INNGEST_URL": stage.inngest_url,
                "REALTIME_URL": stage.rooms_url,
                "INNGEST_DEV": stage.inngest_url,
                "KIND": kind,
            },
            pass_fds=[listener.fileno()],
            start_new_session=True,
        ) as process:
            try:
                await stage.server.register(f"{url}/api/inngest")
                yield url
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    await asyncio.to_thread(process.wait, 10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        (server, kind)
        for server in SERVERS
        for kind in ("sync", "async")
        # Flask runs a coroutine by asyncio.run(), which greenlets of one thread cannot do together.
        if (server, kind) != ("gunicorn gevent", "async")
    ],
)
async def test_reports_of_a_function_stay_in_its_room(stage: Stage, server: str, kind: str) -> None:
    users = [f"u{n}" for n in range(6)]
    is_over = asyncio.Event()

    async def look(url: str) -> None:
        """An ordinary view for other users, all the while."""
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            while not is_over.is_set():
                (await client.get(f"{url}/view/other")).raise_for_status()
                await asyncio.sleep(0.01)
            for _ in range(10):
                (await client.get(f"{url}/view/other")).raise_for_status()

    async with serving(stage, server, kind) as url:
        views = [asyncio.create_task(look(url)) for _ in range(3)]
        for user_id in users:
            await stage.send(kind, userId=user_id)
        async with asyncio.timeout(2 * TIMEOUT_S):
            await stage.server.idle()
        is_over.set()
        await asyncio.gather(*views)
    assert await stage.read_room("user_other") == []
    whole = [f"{what}{n}" for n in range(3) for what in ("step", "thread")] + ["end"]
    for user_id in users:
        messages = await stage.read_room(f"user_{user_id}")
        text = "".join(m["data"]["delta"] for m in messages if m["type"].endswith("delta"))
        assert text == "".join(f"{what} {user_id};" for what in whole)
        labels = [m["data"]["label"] for m in messages if m["type"].endswith("progress")]
        assert {label.partition(" ")[2] for label in labels} == {user_id}
        reported = [m["type"].rpartition(".")[2] for m in messages]
        assert [each for each in reported if each not in ("progress", "delta")] == [
            "started", "retrying", "completed"
        ]  # fmt: skip
        assert reported[-1] == "completed"
