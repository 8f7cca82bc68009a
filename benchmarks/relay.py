"""A relay before a store that counts round trips.

python -m benchmarks.relay LISTEN_PORT STORE_PORT

It holds back what a peer sends until the peer pauses. So a request is one burst, and a request that
waits for the reply to another one is a second burst. For each line of its input, the program prints
how many bursts the clients have sent so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from types import TracebackType
from typing import Self

from .servers import ROOT, free_port

QUIET_S = 0.003
"""A pause that ends a burst."""

START_TIMEOUT_S = 10.0


class Relay:
    """A relay in a process of its own.

    Attributes:
        port: where it listens.
    """

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.relay", str(self.port), str(to_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def __enter__(self) -> Self:
        self.bursts()  # it listens before it reads its input
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def bursts(self) -> int:
        """Return how many bursts the clients have sent so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


class _Bursts:
    """Forwards bursts, and counts those of the clients."""

    def __init__(self, to_port: int) -> None:
        self.count = 0
        self._to_port = to_port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_store = await asyncio.open_connection("127.0.0.1", self._to_port)
        forwards = [
            asyncio.ensure_future(self._forward(reader, to_store, counts=True)),
            asyncio.ensure_future(self._forward(there, writer, counts=False)),
        ]
        await asyncio.wait(forwards, return_when=asyncio.FIRST_COMPLETED)
        for task in forwards:
            task.cancel()
        writer.close()
        to_store.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool
    ) -> None:
        while data := await reader.read(1 << 20):
            with contextlib.suppress(TimeoutError):
                while not reader.at_eof():
                    async with asyncio.timeout(QUIET_S):
                        data += await reader.read(1 << 20)
            self.count += counts
            writer.write(data)
            await writer.drain()


async def _main(listen_port: int, to_port: int) -> None:
    bursts = _Bursts(to_port)
    await asyncio.start_server(bursts.serve, "127.0.0.1", listen_port)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(bursts.count, flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*map(int, sys.argv[1:])))
