"""Subscribers of the reply, who come and go at random and are slow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from synap_realtime import follow_job

from ..interleavings.clients import V1, V2, Client, EventStream, Plain, Sdk, View

REPLY = "reply"


class ReplyView(View):
    """What a client shows of the job: the text, and whether it has ended.

    Attributes:
        received: how many notifications all clients received.
    """

    received: ClassVar[int] = 0

    def apply(self, wire: dict[str, Any], *, by_index: bool = False) -> None:
        self.cursor = wire["cursor"]
        ReplyView.received += 1
        if wire["type"].endswith(".delta"):
            if by_index:
                self.join_by_index({**wire["data"], "key": REPLY})
            else:
                self.join_by_offset(REPLY, wire["fold"]["offset"], wire["data"]["delta"])
        elif wire.get("status") != "pending":
            assert wire["status"] == "success", wire
            assert not self.is_over, "a second ending"
            self.is_over = True


class Follow(Client):
    """``follow_job`` of the SDK."""

    resumes = False

    async def receive(self) -> None:
        ((room, view),) = self.views.items()
        assert isinstance(view, ReplyView)
        length = 0
        async with aclosing(follow_job(room.removeprefix("request_"), self.url)) as states:
            async for state in states:
                ReplyView.received += 1
                assert state.is_text_complete, "a piece is missing"
                assert len(state.text) >= length, "the text became shorter"
                length, view.texts[REPLY] = len(state.text), state.text
                await self.until_readable()
                if state.is_finished:
                    assert state.status == "success", state
                    view.is_over = True
        await asyncio.Event().wait()


KINDS: tuple[type[Client], ...] = (V1, V2, Follow, Sdk, V1, V2, Follow, EventStream, V1, Plain)


class Crowd:
    """Many subscribers of one room.

    Args:
        seed: of their choices.
    """

    def __init__(self, url: str, room: str, count: int, seed: int) -> None:
        self.clients = [KINDS[n % len(KINDS)](url, (room,), ReplyView) for n in range(count)]
        self._room = room
        self._seed = seed
        self._tasks: Sequence[asyncio.Task[None]] = ()

    def start(self) -> None:
        """Let them come and go."""
        self._tasks = [
            asyncio.create_task(self._live(client, random.Random(self._seed * 1000 + number)))
            for number, client in enumerate(self.clients)
        ]

    async def _live(self, client: Client, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(0, 3))
        while True:
            client.connect()
            await asyncio.sleep(chance.uniform(0.2, 6))
            if chance.random() < 0.3:  # slow for a while
                client.pause()
                await asyncio.sleep(chance.uniform(0.2, 4))
            elif chance.random() < 0.5:
                client.disconnect(forget=chance.random() < 0.4)
                await asyncio.sleep(chance.uniform(0, 2))

    async def catch_up(self, within_s: float) -> None:
        """Stop their coming and going, and let all receive the rest.

        Raises:
            AssertionError: one does not come to the end; or what it received is not in order.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self.clients:
            client.connect()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while waiting := [client for client in self.clients if not client.is_over]:
            names = [(type(client).__name__, client.shown()) for client in waiting]
            assert loop.time() < deadline, f"not at the end: {names}"
            await asyncio.sleep(0.02)

    @property
    def texts(self) -> list[str]:
        return [client.views[self._room].texts.get(REPLY, "") for client in self.clients]

    @property
    def connections(self) -> int:
        return sum(client.connections for client in self.clients)

    @property
    def received(self) -> int:
        return ReplyView.received

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(client.close() for client in self.clients))
