"""The room server inside a FastAPI app under uvicorn: one signal stops both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from synap_realtime.server.asgi.adapter import drain_on_signal
from tests.support.timeouts import TIMEOUT_S

APP = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from synap_realtime.server import create_app

rooms = create_app()

@asynccontextmanager
async def lifespan(_):
    async with rooms.lifespan():
        yield
    print("the app's own end", flush=True)

app = FastAPI(lifespan=lifespan)
app.mount("/realtime", rooms)
"""


@contextlib.contextmanager
def hosted(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    (folder / "hosting.py").write_text(APP)
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "hosting:app", "--port", "0", "--app-dir", str(folder)],
        env={**os.environ, "SYNAP_REALTIME_STORE": f"sqlite:///{folder / 'rooms.db'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"running on (http://\S+)", line):
                yield process, f"{found[1]}/realtime"
                break
        else:
            pytest.fail("it did not start")
    finally:
        process.kill()
        process.communicate()


def rest_of(ws: ClientConnection) -> str:
    received = ""
    with contextlib.suppress(ConnectionClosed):
        while True:
            received += str(ws.recv(timeout=TIMEOUT_S))
    return received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_subscribers_and_stops_the_host(tmp_path: Path, number: int) -> None:
    with hosted(tmp_path) as (process, url):
        with (
            httpx.stream("GET", f"{url}/rooms/user_1/events", timeout=TIMEOUT_S) as stream,
            connect(url.replace("http", "ws") + "/rooms/user_1/subscribe") as plain,
            connect(
                url.replace("http", "ws") + "/rooms/user_1/subscribe",
                subprotocols=["synap.v1"],  # type: ignore[list-item]
            ) as ws,
        ):
            lines = stream.iter_lines()
            note = {"type": "a", "data": {}, "id": "n1"}
            assert httpx.post(f"{url}/rooms/user_1/broadcast", json=note).status_code == 200
            for line in lines:
                if '"id":"n1"' in line:
                    break
            process.send_signal(number)
            assert "synap.closing" in "".join(lines), "the stream ends, and says so"
            assert "synap.closing" in rest_of(ws)
            assert ws.close_code == 4012
            rest_of(plain)
            assert plain.close_code == 4012
        said, _ = process.communicate(timeout=TIMEOUT_S)
    assert "the app's own end" in said
    assert "Traceback" not in said


async def test_previous_signal_handlers_are_called_after_draining_and_restored() -> None:
    calls: list[str] = []
    free = asyncio.Event()

    async def drain() -> None:
        calls.append("drain")
        await free.wait()
        calls.append("drained")

    def previous(number: int, _: object) -> None:
        calls.append(f"signal {number}")

    first = signal.signal(signal.SIGTERM, previous)
    try:
        async with drain_on_signal(drain):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.01)
            assert calls == ["drain"]
            free.set()
        assert calls == ["drain", "drained", f"signal {signal.SIGTERM}"]
        assert signal.getsignal(signal.SIGTERM) is previous

        calls.clear()
        free.clear()
        async with drain_on_signal(drain):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            assert calls == ["drain", f"signal {signal.SIGTERM}"], "a second one goes on at once"
            free.set()
        assert calls == ["drain", f"signal {signal.SIGTERM}", "drained"]
    finally:
        signal.signal(signal.SIGTERM, first)


async def test_unhandled_signals_stay_unhandled_and_threads_install_nothing() -> None:
    async def drain() -> None:
        pass

    first = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        async with drain_on_signal(drain):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, first)

    async def open_it() -> None:
        async with drain_on_signal(drain):
            pass

    before = signal.getsignal(signal.SIGINT)
    await asyncio.to_thread(asyncio.run, open_it())
    assert signal.getsignal(signal.SIGINT) is before
