"""Kill the server while a subscriber is disconnected: it receives everything once, in order.

::

    $ .venv/bin/python -m examples.away
    received step 1
    (server killed and restarted; publishing two more without a subscriber)
    received step 2
    received step 3
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

from synap_realtime import AsyncBroadcaster, subscribe

with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]
URL = f"http://127.0.0.1:{PORT}"
COMMAND = str(Path(sys.executable).with_name("synap-realtime"))


def start(directory: str) -> subprocess.Popen[bytes]:
    store = f"sqlite:///{directory}/rooms.db"
    return subprocess.Popen(  # noqa: S603
        [COMMAND, "serve", "--port", str(PORT), "--store", store, "--log-level", "error"]
    )


async def receive(after: str | None, last: int) -> str | None:
    """Print notifications up to a step; return the cursor after it."""
    async with aclosing(subscribe("user_42", URL, after=after)) as notifications:
        async for notification in notifications:
            print("received step", notification.data["step"])
            if notification.data["step"] == last:
                return notification.cursor
    return None


async def main() -> None:
    with TemporaryDirectory() as directory:
        server = start(directory)
        async with AsyncBroadcaster(URL) as broadcaster:
            await broadcaster.broadcast_success("42", "report.progress", {"step": 1})
            cursor = await receive(None, last=1)
            server.kill()
            server.wait()
            server = start(directory)
            print("(server killed and restarted; publishing two more without a subscriber)")
            for step in (2, 3):
                await broadcaster.broadcast_success("42", "report.progress", {"step": step})
            await receive(cursor, last=3)
        server.terminate()
        server.wait()


if __name__ == "__main__":
    asyncio.run(main())
