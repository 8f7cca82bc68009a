"""The write batch: what is written immediately, and in which order the rest follows."""

from __future__ import annotations

import asyncio

from synap_realtime.server.protocols.writes import MAX_BATCH_BYTES, WriteBatch


class _Socket:
    def __init__(self, name: str, written: list[tuple[str, bytes]]) -> None:
        self._name = name
        self._written = written
        self.is_writable = True

    def write_now(self, data: bytes) -> bool:
        self._written.append((self._name, data))
        return self.is_writable


async def test_writes_first_frame_and_first_response_of_an_iteration_immediately() -> None:
    written: list[tuple[str, bytes]] = []
    subscriber, publisher = _Socket("subscriber", written), _Socket("publisher", written)
    batch = WriteBatch()
    for number in (b"1", b"2"):
        assert batch.add(subscriber, number)
        batch.add_response(publisher, number)
        assert written[-2:] == [("subscriber", number), ("publisher", number)]
        await asyncio.sleep(0)


async def test_writes_the_rest_at_the_end_of_the_iteration_responses_first() -> None:
    written: list[tuple[str, bytes]] = []
    subscriber, publisher = _Socket("subscriber", written), _Socket("publisher", written)
    batch = WriteBatch()
    for number in (b"1", b"2", b"3"):
        batch.add(subscriber, number)
        batch.add_response(publisher, number)
    assert written == [("subscriber", b"1"), ("publisher", b"1")]
    await asyncio.sleep(0)
    assert written[2:] == [
        ("publisher", b"2"), ("publisher", b"3"), ("subscriber", b"2"), ("subscriber", b"3")
    ]  # fmt: skip


async def test_returns_false_when_the_first_frame_blocks_the_socket() -> None:
    blocked = _Socket("blocked", [])
    blocked.is_writable = False
    assert not WriteBatch().add(blocked, b"frame")


async def test_flushes_before_the_end_when_the_batch_is_large() -> None:
    written: list[tuple[str, bytes]] = []
    subscriber = _Socket("subscriber", written)
    batch = WriteBatch()
    for _ in range(3):
        batch.add(subscriber, bytes(MAX_BATCH_BYTES))
    assert len(written) > 1
