"""The clocks are correct for any jump of the clock underneath."""

from __future__ import annotations

from pathlib import Path

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Publication, Retention, Store
from synap_realtime.server.stores.clock import MAX_STEP_S, OffsetClock, RunningClock
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.stores.sqlite.store import SqliteStore

DAY_S = 86_400.0


class Source:
    now = 5_000.0

    def __call__(self) -> float:
        return self.now


def test_counts_the_time_that_passes() -> None:
    source = Source()
    clock = RunningClock(source)
    began = clock()
    for _ in range(3_600):
        source.now += 1
        clock()
    assert clock() - began == pytest.approx(3_600)


@pytest.mark.parametrize("jump_s", [3 * DAY_S, -3 * DAY_S, 1e12, -1e12])
def test_a_jump_counts_for_a_minute_at_most(jump_s: float) -> None:
    source = Source()
    clock = RunningClock(source)
    source.now += 10
    before = clock()
    source.now += jump_s
    assert 0 <= clock() - before <= MAX_STEP_S
    source.now += 2.5
    ahead = clock()
    source.now -= jump_s
    assert 0 <= clock() - ahead <= MAX_STEP_S
    back = clock()
    source.now += 5
    assert clock() - back == pytest.approx(5)


def test_never_goes_back() -> None:
    source = Source()
    clock = RunningClock(source)
    seen = []
    for step in (1.0, -2.0, 3.0, 1e6, -1e6, 0.5, 59.0, 61.0, -0.001):
        source.now += step
        seen.append(clock())
    assert seen == sorted(seen)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("jump_s", [3 * DAY_S, -3 * DAY_S])
async def test_brief_clock_error_deletes_nothing(kind: str, jump_s: float, tmp_path: Path) -> None:
    source = Source()
    clock = RunningClock(source)
    kept = Retention(max_age_s=DAY_S, dedupe_window_s=300)
    store: Store = (
        MemoryStore(kept, clock=clock)
        if kind == "memory"
        else SqliteStore(tmp_path / "rooms.db", kept, clock=clock)
    )
    room = Room("user_1")

    async def publish(id: str) -> bool:
        text = f'{{"id":"{id}"}}'
        (receipt,) = await store.publish([Publication(room, id, text)])
        return receipt.duplicate

    async def count() -> int:
        return len((await store.read(room, store.earliest(), 100)).entries)

    await publish("before")
    source.now += jump_s
    assert await count() == 1
    await publish("meanwhile")
    source.now += 2.5
    assert await publish("before"), "it is still a duplicate"
    source.now -= jump_s
    assert await publish("meanwhile")
    assert await count() == 2
    for _ in range(6):  # nothing lives for ever, and ids are forgotten in time
        source.now += 59
        await publish("tick")
    assert not await publish("before")
    for _ in range(int(DAY_S / 59) + 2):
        source.now += 59
        clock()
    assert await count() == 0
    await store.close()


def test_offsets_grow_within_one_microsecond_and_after_the_last() -> None:
    stopped = OffsetClock(10**17, clock_ns=lambda: 0)
    assert stopped.now() == 10**17 + 1
    assert stopped.next(10**17 + 1) == 10**17 + 2
    assert stopped.next(10**17 + 2) == 10**17 + 3


def test_offsets_follow_no_jump_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    elapsed_ns = 0
    clock = OffsetClock(clock_ns=lambda: elapsed_ns)
    before = clock.now()
    monkeypatch.setattr("time.time_ns", lambda: 0)
    elapsed_ns = 5_000
    assert clock.now() == before + 5
