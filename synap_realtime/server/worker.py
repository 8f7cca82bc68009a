"""Run one worker of ``serve --workers``; ``workers.py`` starts it.

The supervisor writes the configuration to stdin, and closes stdin to stop the worker. Stdin also
ends when the supervisor dies, so that no worker outlives it. The worker writes a byte to stdout
when it accepts connections.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys

from ..errors import SynapRealtimeError
from .serve import WorkerContext, run, until_stopped
from .workers import WorkerConfig


def main() -> None:
    config: WorkerConfig = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent process
    supervisor = os.dup(1)
    os.dup2(2, 1)  # output of application code must not reach the supervisor

    def notify_ready() -> None:
        os.write(supervisor, b"+")
        os.close(supervisor)

    try:
        run(
            config.settings,
            WorkerContext(config.number, config.port, notify_ready, _until_stopped),
        )
    except SynapRealtimeError as error:
        print(f"synap-realtime: {error}", file=sys.stderr)  # noqa: T201 - like the command
        raise SystemExit(2) from None


async def _until_stopped() -> None:
    """Wait until the supervisor closes stdin, or for SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()
    loop.add_reader(0, closed.set)
    waiting = [loop.create_task(closed.wait()), loop.create_task(until_stopped())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(0)
        for each in waiting:
            each.cancel()


if __name__ == "__main__":
    main()
