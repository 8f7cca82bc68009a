"""Rates over several nodes, on a store that counts its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from synap_realtime.server.auth.claims import Claims
from synap_realtime.server.auth.limits import Limits
from synap_realtime.server.auth.shared_rates import LEASE_SHARE, SharedRates
from synap_realtime.server.config import load_settings
from synap_realtime.server.errors import RateLimitedError, StoreUnavailableError
from synap_realtime.server.stores.base import RateDemand, RateGrant


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Keeps rates as the store on Redis does, by the clock of the test.

    Attributes:
        calls: the demands of each call.
        gate: calls wait for it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._full_at: dict[tuple[str, str], float] = {}
        self.calls: list[Sequence[RateDemand]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_away = False

    async def take_rates(self, caller: str, demands: Sequence[RateDemand]) -> RateGrant:
        self.calls.append(demands)
        await self.gate.wait()
        if self.is_away:
            raise StoreUnavailableError("away")
        for ahead in (1, 0):
            full, waits = {}, []
            for each in demands:
                key = (caller, each.name)
                cost = each.cost + ahead * each.ahead
                since = max(self._clock(), self._full_at.get(key, 0.0))
                full[key] = since + cost / each.per_s
                wait_s = full[key] - self._clock() - 1.0
                waits.append(wait_s if wait_s > 1e-9 else 0.0)
            if not any(waits):
                self._full_at.update(full)
                break
        return RateGrant(waits, bool(ahead))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock)


def rates(store: Store, clock: Clock, notifications: int, size: int = 0) -> SharedRates:
    per_s = {"notifications": notifications, "bytes": size}
    return SharedRates(store, per_s, most=1000, clock=clock)


async def publish(subject: SharedRates, *costs: int, who: str = "jobs") -> Sequence[float]:
    """Take costs as a publish does; then let renewals end."""
    if subject.take_leased(who, costs):
        waits: Sequence[float] = [0.0] * len(costs)
    else:
        waits = await subject.take(who, costs)
    for _ in range(5):
        await asyncio.sleep(0)
    return waits


async def test_only_the_first_publish_of_a_caller_waits_for_the_store(
    store: Store, clock: Clock
) -> None:
    subject = rates(store, clock, 1000, 100_000)
    assert not subject.take_leased("jobs", (1, 300))
    assert not any(await subject.take("jobs", (1, 300)))
    for _ in range(500):
        assert subject.take_leased("jobs", (1, 300))
        await asyncio.sleep(0)
        clock.now += 0.01
    assert len(store.calls) < 130, "a lease has 20 notifications, or 2,000 bytes"


async def test_lease_is_renewed_ahead_of_its_end(store: Store, clock: Clock) -> None:
    subject = rates(store, clock, 1000)
    await publish(subject, 1, 0)
    store.gate.clear()
    taken = 0
    while subject.take_leased("jobs", (1, 0)):
        await asyncio.sleep(0)
        taken += 1
    assert taken == 1000 // LEASE_SHARE
    assert len(store.calls) == 2, "one renewal is under way"
    store.gate.set()
    assert not any(await publish(subject, 1, 0))
    assert len(store.calls) == 2, "it waited for the renewal"


async def test_nodes_exceed_the_rate_by_their_leases_at_most(store: Store, clock: Clock) -> None:
    nodes = [rates(store, clock, 1000) for _ in range(4)]
    for node in nodes:
        await publish(node, 1, 0)
    accepted = len(nodes)
    clock.now += 1.0  # the leases are kept, and the bucket is full again
    for node in nodes:
        for _ in range(2000):
            accepted += not any(await publish(node, 1, 0))
    assert 1000 < accepted <= 1000 + 4 * 1.5 * 1000 / LEASE_SHARE


@pytest.mark.parametrize("per_s", [1, 7, 49, 50, 1000])
async def test_one_node_gets_the_whole_rate(store: Store, clock: Clock, per_s: int) -> None:
    subject = rates(store, clock, per_s)
    accepted = 0
    for _ in range(3 * per_s):
        accepted += not any(await publish(subject, 1, 0))
    assert accepted == per_s
    clock.now += 10.0
    assert not any(await publish(subject, 1, 0))


async def test_refusal_says_when_to_repeat_and_asks_the_store_once(
    store: Store, clock: Clock
) -> None:
    subject = rates(store, clock, 10)
    for _ in range(10):
        await publish(subject, 1, 0)
    refused = [await publish(subject, 1, 0) for _ in range(100)]
    assert all(each[0] == pytest.approx(0.1) for each in refused)
    calls = len(store.calls)
    await publish(subject, 5, 0)
    assert len(store.calls) == calls, "what lacks one lacks five"
    clock.now += 0.11
    assert not any(await publish(subject, 1, 0))


async def test_refused_cost_of_one_rate_takes_nothing_of_the_other(
    store: Store, clock: Clock
) -> None:
    subject = rates(store, clock, 100, 1000)
    assert not any(await publish(subject, 1, 1000))
    for _ in range(50):
        notifications_s, bytes_s = await publish(subject, 10, 500)
        assert (notifications_s, bytes_s > 0) == (0.0, True)
    clock.now += 1.0
    assert not any(await publish(subject, 99, 10))


async def test_batch_over_a_second_counts_as_a_second(store: Store, clock: Clock) -> None:
    subject = rates(store, clock, 100)
    assert not any(await publish(subject, 1000, 0))
    assert (await publish(subject, 1000, 0))[0] == pytest.approx(1.0)


async def test_rate_without_a_limit_is_not_asked_for(store: Store, clock: Clock) -> None:
    subject = rates(store, clock, 0, 1000)
    assert not any(await publish(subject, 10_000, 1))
    assert {each.name for call in store.calls for each in call} == {"bytes"}


async def test_callers_are_apart(store: Store, clock: Clock) -> None:
    subject = rates(store, clock, 1)
    assert not any(await publish(subject, 1, 0, who="a"))
    assert not any(await publish(subject, 1, 0, who="b"))
    assert any(await publish(subject, 1, 0, who="a"))


async def test_forgotten_lease_gives_nothing_away(store: Store, clock: Clock) -> None:
    subject = SharedRates(store, {"notifications": 50}, most=2, clock=clock)
    for number in range(5):
        await publish(subject, 1, who=str(number))
    accepted = 1
    for _ in range(100):
        accepted += not any(await publish(subject, 1, who="0"))
    assert accepted == 50 - 1, "its first lease was lost"


async def test_concurrent_publishes_share_the_renewal(store: Store, clock: Clock) -> None:
    subject = rates(store, clock, 1000)
    waits = await asyncio.gather(*(publish(subject, 1, 0) for _ in range(20)))
    assert not any(any(each) for each in waits)
    assert len(store.calls) <= 3


async def test_cancelled_publish_keeps_the_lease(store: Store, clock: Clock) -> None:
    subject = rates(store, clock, 1000)
    await publish(subject, 1, 0)
    store.gate.clear()
    cancelled = asyncio.create_task(subject.take("jobs", (100, 0)))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert subject.take_leased("jobs", (1000 // LEASE_SHARE, 0))


async def test_without_the_store_the_lease_is_used_up(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    subject = rates(store, clock, 1000)
    await publish(subject, 1, 0)
    store.is_away = True
    for _ in range(1000 // LEASE_SHARE):
        assert not any(await publish(subject, 1, 0))
        clock.now += 0.1
    with pytest.raises(StoreUnavailableError):
        await publish(subject, 1, 0)
    assert not caplog.records
    store.is_away = False
    assert not any(await publish(subject, 1, 0))


async def test_error_is_that_of_one_node(store: Store) -> None:
    settings = load_settings(publishes_per_s=5, publish_bytes_per_s=100)
    limits, claims = Limits(settings, store), Claims(key_name="jobs")
    waits_s: list[float] = []

    async def problem(count: int, size: int) -> str | None:
        try:
            counting = limits.check_publish(claims, count, size)
            if counting is not None:
                await counting
        except RateLimitedError as error:
            waits_s.append(error.retry_after_s)
            return error.details
        return None

    assert await problem(1, 90) is None
    assert await problem(1, 60) == "rate limit exceeded: 100 bytes/s per key"
    assert await problem(4, 1) is None
    assert await problem(1, 1) == "rate limit exceeded: 5 notifications/s per key"
    assert all(0 < each <= 1.0 for each in waits_s)


@pytest.mark.parametrize("claims", [Claims()])
async def test_without_keys_there_is_no_limit(store: Store, claims: Claims) -> None:
    limits = Limits(load_settings(publishes_per_s=1), store)
    assert [limits.check_publish(claims, 1, 1) for _ in range(10)] == [None] * 10
    assert not store.calls


async def test_publish_that_waited_for_a_failed_renewal_fails_with_it(
    store: Store, clock: Clock
) -> None:
    """So that it waits for an absent store once, not twice."""
    subject = rates(store, clock, 1000)
    await publish(subject, 1, 0)
    store.gate.clear()
    for _ in range(1000 // LEASE_SHARE):
        assert subject.take_leased("jobs", (1, 0))
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(subject.take("jobs", (1, 0))) for _ in range(3)]
    await asyncio.sleep(0)
    store.is_away = True
    store.gate.set()
    failed = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in failed] == [StoreUnavailableError] * 3
    assert len(store.calls) == 2
