"""One of the processes of ``serve --workers``: ``supervisor.py`` starts it, and it ends with that.

Stdin brings what to do, and comes to its end when the supervisor wants this process to end, or has
died. Stdout is told when connections are taken.
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
    job: WorkerConfig = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that has started this
    told = os.dup(1)
    os.dup2(2, 1)  # what somebody's own code prints is no message to the supervisor

    def notify_ready() -> None:
        os.write(told, b"+")
        os.close(told)

    try:
        run(job.settings, WorkerContext(job.number, job.port, notify_ready, _until_ended))
    except SynapRealtimeError as error:
        print(f"synap-realtime: {error}", file=sys.stderr)  # noqa: T201 - as the command does
        raise SystemExit(2) from None


async def _until_ended() -> None:
    """Until the supervisor ends this, or somebody sends a signal."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(0, ended.set)
    waiting = [loop.create_task(ended.wait()), loop.create_task(until_stopped())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(0)
        for each in waiting:
            each.cancel()


if __name__ == "__main__":
    main()
