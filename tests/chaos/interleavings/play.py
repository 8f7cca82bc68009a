"""Play steps against a server, and compare every client with the model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hypothesis import strategies as st

from tests.support.timeouts import TIMEOUT_S

from .clients import KINDS, Client
from .model import STATE_KEY, TEXT_KEYS, Writer

Step = tuple[Any, ...]


class Server(Protocol):
    url: str

    async def start(self) -> None: ...

    async def kill(self) -> None: ...


ROOM = st.integers(0, 1)
KEY = st.sampled_from(TEXT_KEYS)
BIG = "200 kB"
"""Stands for a piece of this size, so that steps that fail are readable."""
PIECES = st.lists(
    st.text('aé€😀\n"\\', min_size=1, max_size=4) | st.just("tok " * 10), min_size=1, max_size=12
) | st.just([BIG])
CLIENT = st.integers(0, len(KINDS) * 2 - 1)

WRITES = (
    st.tuples(st.just("append"), ROOM, KEY, PIECES),
    st.tuples(st.just("append"), ROOM, KEY, PIECES),
    st.tuples(st.just("append"), ROOM, KEY, PIECES),
    st.tuples(st.just("final"), ROOM, KEY, PIECES),
    st.tuples(st.just("retry"), ROOM, KEY, st.text("bé😀", min_size=1, max_size=3)),
    st.tuples(st.just("replace"), ROOM, st.booleans()),
    st.tuples(st.just("publish"), ROOM, st.integers(1, 9)),
    st.tuples(st.just("repeat"), ROOM, KEY),
    st.tuples(st.just("beyond"), ROOM, KEY),
    st.tuples(st.just("zombie"), ROOM, KEY),
    st.tuples(st.just("mode"), ROOM, KEY),
)
SUBSCRIBERS = (
    st.tuples(st.just("connect"), CLIENT),
    st.tuples(st.just("connect"), CLIENT),
    st.tuples(st.just("disconnect"), CLIENT, st.booleans()),
    st.tuples(st.just("pause"), CLIENT),
    st.tuples(st.just("wait")),
)
KILL = st.tuples(st.just("kill"))


def steps(*, has_kills: bool) -> st.SearchStrategy[list[Step]]:
    """Return a strategy for the steps of an interleaving."""
    step: st.SearchStrategy[Step] = st.one_of(
        *WRITES, *SUBSCRIBERS, *SUBSCRIBERS, *([KILL] if has_kills else [])
    )
    return st.lists(step, min_size=25, max_size=120)


@dataclass
class Player:
    """Plays interleavings on one server, each in rooms of its own.

    Attributes:
        played, steps, kills, connections: how much it has played.
    """

    server: Server
    played: int = 0
    steps: int = 0
    kills: int = 0
    connections: int = 0
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def play(self, steps: Sequence[Step]) -> None:
        """Play steps.

        Raises:
            AssertionError: an answer, or what a client shows, is not that of the model.
        """
        number = next(self._numbers)
        rooms = (f"request_{number}", f"user_{number}")
        writer = Writer(self.server.url, rooms)
        clients = [
            kind(self.server.url, rooms if kind.__name__ in _OF_ALL_ROOMS else (room,))
            for room in rooms
            for kind in KINDS
        ]
        try:
            for step in steps:
                await self._take(step, rooms, writer, clients)
            await self._finish(rooms, writer, clients)
        finally:
            await asyncio.gather(writer.close(), *(client.close() for client in clients))
        self.played += 1
        self.steps += len(steps)
        self.connections += sum(client.connections for client in clients)

    async def _take(
        self, step: Step, rooms: tuple[str, ...], writer: Writer, clients: list[Client]
    ) -> None:
        match step:
            case ["append" | "final" as kind, room, key, pieces]:
                is_final = kind == "final"
                if pieces == [BIG]:  # a request has at most 1 MiB
                    await writer.append(
                        rooms[room],
                        key,
                        ["".join(map(str, range(38_000)))[:200_000]],
                        final=is_final,
                    )
                else:
                    await writer.append(rooms[room], key, pieces, final=is_final)
            case ["retry", room, key, piece]:
                await writer.retry(rooms[room], key, piece)
            case ["replace", room, final]:
                await writer.replace(rooms[room], final=final)
            case ["publish", room, count]:
                await writer.publish(rooms[room], count)
            case ["repeat", room, key]:
                await writer.repeat(rooms[room], key)
            case ["beyond", room, key]:
                await writer.write_beyond_the_end(rooms[room], key)
            case ["zombie", room, key]:
                await writer.write_as_zombie(rooms[room], key)
            case ["mode", room, key]:
                await writer.change_mode(rooms[room], key)
            case ["connect", client]:
                clients[client].connect()
            case ["disconnect", client, forget]:
                clients[client].disconnect(forget=forget)
            case ["pause", client]:
                clients[client].pause()
            case ["wait"]:
                await asyncio.sleep(0.05)  # longer than pieces are held back to be joined
            case ["kill"]:
                self.kills += 1
                await self.server.kill()
                await self.server.start()
            case _:
                raise AssertionError(step)

    async def _finish(self, rooms: tuple[str, ...], writer: Writer, clients: list[Client]) -> None:
        """Write each key once more, so that the log has it, and let every client catch up."""
        for client in clients:
            client.connect()
        for room in rooms:
            for key in TEXT_KEYS:
                await writer.append(room, key, ["end"])
            await writer.replace(room)
            await writer.end(room)
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        while waiting := [client for client in clients if not client.is_over]:
            names = [(type(client).__name__, client.shown()) for client in waiting]
            assert asyncio.get_running_loop().time() < deadline, f"not at the end: {names}"
            await asyncio.sleep(0.01)
        for client in clients:
            for room, view in client.views.items():
                keys = writer.rooms[room].keys
                for key in TEXT_KEYS:
                    assert view.texts[key] == keys[key].shown, (type(client).__name__, room, key)
                assert view.value == keys[STATE_KEY].value, (type(client).__name__, room)


_OF_ALL_ROOMS = ("V2", "EventStream", "Sdk")
