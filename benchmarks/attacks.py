"""Hostile clients of the scenario ``abuse``, limited in connections and time; loopback only.

python -m benchmarks.attacks NAME PORT SECONDS SCALE CORE

``TOKENS`` in the environment holds, as JSON, the attacker's credentials: the token of one user. The
program prints one JSON object: the attacker's cost.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from . import machine

ROOM = "user_1"
CONCURRENT_DIALS = 100
PAUSE_S = 0.02
"""Pause before a connection that the server has closed is reopened."""

_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass(slots=True)
class Cost:
    """The attacker's cost.

    Attributes:
        connections: maximum number of concurrent connections.
        dials: connections opened, including those reopened after the server closed them.
        sent_bytes, received_bytes: totals.
        answers: responses that were read.
        wall_s: duration.
    """

    connections: int = 0
    dials: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    answers: int = 0
    wall_s: float = 0.0


@dataclass(slots=True)
class Attacker:
    """State shared by all connections of one attack.

    Attributes:
        token: of a user that may subscribe to the own room, read it and watch its presence.
        scale: factor for the number of connections; 1 is the full attack.
    """

    port: int
    end: float
    token: str
    scale: float
    cost: Cost = field(default_factory=Cost)
    open: int = 0
    _dials: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_DIALS))

    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def scaled(self, count: int) -> int:
        return max(1, round(count * self.scale))

    async def hold(self, count: int, request: Callable[[int], bytes], *, reads: bool) -> None:
        """Open this number of connections, send one payload on each, and keep them open. Reopen
        those that the server closes.
        """
        await asyncio.gather(*(self._keep(n, request, reads=reads) for n in range(count)))

    async def _keep(self, number: int, request: Callable[[int], bytes], *, reads: bool) -> None:
        while not self.is_over():
            peer = await self.dial()
            if peer is None:
                continue
            if not reads:
                peer.transport.pause_reading()
            peer.send(request(number))
            await peer.wait_closed(self.end - time.monotonic())
            peer.transport.abort()
            if not self.is_over():
                await asyncio.sleep(PAUSE_S)

    async def flood(self, count: int, request: Callable[[], bytes], pipelined: int = 1) -> None:
        """On this number of connections, send the next requests when all earlier ones were
        answered.
        """
        await asyncio.gather(*(self._ask(request, pipelined) for _ in range(count)))

    async def _ask(self, request: Callable[[], bytes], pipelined: int) -> None:
        while not self.is_over():
            peer = await self.dial()
            if peer is None:
                continue
            while not (self.is_over() or peer.is_gone):
                answers = peer.answers + pipelined
                peer.send(b"".join(request() for _ in range(pipelined)))
                await peer.wait_answers(answers, self.end - time.monotonic())
            peer.transport.abort()

    async def dial(self) -> Peer | None:
        """Open a connection; after a failure, pause and return None."""
        loop = asyncio.get_running_loop()
        async with self._dials:
            try:
                async with asyncio.timeout(max(0.01, self.end - time.monotonic())):
                    _, peer = await loop.create_connection(
                        lambda: Peer(self), "127.0.0.1", self.port
                    )
            except (OSError, TimeoutError):
                await asyncio.sleep(PAUSE_S)
                return None
        return peer


class Peer(asyncio.Protocol):
    """One connection of an attacker."""

    transport: asyncio.Transport

    def __init__(self, attacker: Attacker) -> None:
        self._attacker = attacker
        self._changed = asyncio.Event()
        self._rest = b""
        self._left = 0  # remaining bytes of a body
        self.answers = 0
        self.is_gone = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        attacker = self._attacker
        attacker.open += 1
        attacker.cost.dials += 1
        attacker.cost.connections = max(attacker.cost.connections, attacker.open)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._attacker.open -= 1
        self.is_gone = True
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self._attacker.cost.received_bytes += len(data)
        self._read(data)

    def _read(self, data: bytes) -> None:
        """Count responses with a Content-Length."""
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
            else:
                data = self._rest + data
                head, end, data = data.partition(b"\r\n\r\n")
                if not end:
                    self._rest = head
                    return
                self._rest = b""
                _, found, length = head.lower().partition(b"content-length: ")
                if not found:  # a stream: stop counting
                    return
                self._left = int(length.split(b"\r\n", 1)[0])
            if not self._left:
                self.answers += 1
                self._attacker.cost.answers += 1
                self._changed.set()

    def send(self, data: bytes) -> None:
        if not self.is_gone:
            self._attacker.cost.sent_bytes += len(data)
            self.transport.write(data)

    async def wait_answers(self, count: int, within_s: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, within_s)):
                while not self.is_gone and self.answers < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def wait_closed(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, within_s)):
                while not self.is_gone:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass


def get(path: str, *fields: str, line: str = "GET") -> bytes:
    """Build a request without a body."""
    return "\r\n".join([f"{line} {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def subscribe(token: str, query: str) -> bytes:
    """Build a WebSocket handshake (RFC 6455, section 4.1)."""
    return get(
        f"/rooms/{ROOM}/subscribe?{query}", f"Authorization: Bearer {token}", "Upgrade: websocket",
        "Connection: Upgrade", f"Sec-WebSocket-Key: {_KEY}", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: synap.v1",
    )  # fmt: skip


def ping() -> bytes:
    """Build a masked ping frame; the key is 0."""
    return b"\x89\x80\0\0\0\0"


async def none(me: Attacker) -> None:
    """no attack"""
    await asyncio.sleep(me.end - time.monotonic())


async def unread_answers(me: Attacker) -> None:
    """4,500 history requests of one user, 1.2 MB each, responses unread"""
    request = get(f"/rooms/{ROOM}/history?limit=1000", f"Authorization: Bearer {me.token}")
    await me.hold(me.scaled(4500), lambda _: request, reads=False)


async def long_targets(me: Attacker) -> None:
    """targets of 60 KB, 8 connections"""
    request = get("/" + "a/" * 30_000)
    await me.flood(8, lambda: request)


async def query_fields(me: Attacker) -> None:
    """15,000 query fields, 8 connections"""
    request = get("/?" + "a=b&" * 15_000)
    await me.flood(8, lambda: request)


async def partial_requests(me: Attacker) -> None:
    """5,000 incomplete request heads of 62 KiB"""
    request = b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X-A: %b\r\n" % (b"a" * 6000) * 10 + b"X"
    await me.hold(me.scaled(5000), lambda _: request, reads=True)


async def byte_after_close(me: Attacker) -> None:
    """one more byte after Connection: close, 8 connections"""
    request = get("/x", "Connection: close", "Content-Length: 0", line="POST") + b"a"
    await me.flood(8, lambda: request)


async def presence(me: Attacker) -> None:
    """45 presence watchers of one user, 50 new devices a second"""
    numbers = iter(range(1_000_000))

    async def visit() -> None:
        peer = await me.dial()
        if peer is not None:
            peer.send(subscribe(me.token, f"device=d{next(numbers)}&after=latest"))
            await asyncio.sleep(0.05)
            peer.transport.abort()

    async def come_and_go() -> None:
        async with asyncio.TaskGroup() as visits:
            while not me.is_over():
                visits.create_task(visit())
                await asyncio.sleep(0.02)

    watch = subscribe(me.token, "presence=1&after=latest")
    await asyncio.gather(me.hold(45, lambda _: watch, reads=True), come_and_go())


async def history(me: Attacker) -> None:
    """history of 1.2 MB read repeatedly, one user, 8 connections"""
    request = get(f"/rooms/{ROOM}/history?limit=1000", f"Authorization: Bearer {me.token}")
    await me.flood(8, lambda: request)


async def ready(me: Attacker) -> None:
    """/ready, 16 connections"""
    request = get("/ready")
    await me.flood(16, lambda: request)


async def revoke(me: Attacker) -> None:
    """/revoke with garbage, 16 connections"""
    body = json.dumps({"token": "Bearer a.b.c " + "x" * 900})
    fields = (f"Content-Length: {len(body)}", "Authorization: Bearer x")
    request = get("/revoke", *fields, line="POST") + body.encode()
    await me.flood(16, lambda: request)


async def failed_tokens(me: Attacker) -> None:
    """forged tokens, each different, 16 connections"""
    numbers = iter(range(100_000_000))
    head, _, _ = me.token.rpartition(".")

    def request() -> bytes:
        forged = f"{head}.{next(numbers):043d}"
        return get(f"/rooms/{ROOM}/history", f"Authorization: Bearer {forged}")

    await me.flood(16, request)


async def pipelined(me: Attacker) -> None:
    """99 requests pipelined, 16 connections"""
    request = get("/nothing")
    await me.flood(16, lambda: request, pipelined=99)


async def slow_readers(me: Attacker) -> None:
    """45 subscribers with 1.2 MB of backlog that do not read"""
    request = subscribe(me.token, "after=earliest")
    await me.hold(45, lambda _: request, reads=False)


async def frames(me: Attacker) -> None:
    """45 WebSockets that send pings continuously"""
    request = subscribe(me.token, "after=latest") + ping() * 900

    async def one() -> None:
        while not me.is_over():
            peer = await me.dial()
            if peer is None:
                continue
            peer.send(request)
            while not (me.is_over() or peer.is_gone):
                await asyncio.sleep(1.0)
                peer.send(ping() * 900)
            peer.transport.abort()

    await asyncio.gather(*(one() for _ in range(45)))


async def connects(me: Attacker) -> None:
    """connections opened and closed, 16 concurrently"""

    async def one() -> None:
        while not me.is_over():
            peer = await me.dial()
            if peer is not None:
                peer.transport.abort()

    await asyncio.gather(*(one() for _ in range(16)))


async def many_requests(me: Attacker) -> None:
    """/health on 500 connections"""
    request = get("/health")
    await me.flood(me.scaled(500), lambda: request)


ATTACKS = {
    each.__name__: each
    for each in (
        none, unread_answers, long_targets, query_fields, partial_requests, byte_after_close,
        presence, history, ready, revoke, failed_tokens, pipelined, slow_readers, frames, connects,
        many_requests,
    )
}  # fmt: skip


def title(name: str) -> str:
    """Return the description of an attack."""
    return (ATTACKS[name].__doc__ or name).strip()


async def _run(
    name: str, port: int, duration_s: float, scale: float, given: Mapping[str, str]
) -> None:
    begun = time.monotonic()
    me = Attacker(port, begun + duration_s, given["token"], scale)
    await ATTACKS[name](me)
    me.cost.wall_s = max(duration_s, time.monotonic() - begun)
    print(json.dumps(asdict(me.cost)), flush=True)


def main() -> None:
    name, port, duration_s, scale, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    os.nice(5)  # the honest publisher shares its core
    machine.raise_file_limit()
    tokens = json.loads(os.environ["TOKENS"])
    work = _run(name, int(port), float(duration_s), float(scale), tokens)
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


if __name__ == "__main__":
    main()
