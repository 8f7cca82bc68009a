"""Rates that the nodes of a store on Redis share."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import redis.asyncio

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.auth.claims import Claims
from synap_realtime.server.auth.limits import Limits
from synap_realtime.server.config import load_settings
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import RateDemand, RateGrant
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.connection import Command, RedisConnection
from synap_realtime.server.stores.redis.publish_script import PUBLISH
from synap_realtime.server.stores.redis.scripts import TAKE_RATES
from synap_realtime.server.stores.redis.store import RedisStore
from tests.server.stores.conftest import Clock
from tests.support.stores import publication


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """On a standalone server, unless a test names another kind."""
    server = request.getfixturevalue(getattr(request, "param", "valkey"))
    return f"{server}?prefix={secrets.token_hex(4)}"


@pytest.fixture
async def nodes(url: str, clock: Clock) -> AsyncIterator[list[RedisStore]]:
    opened = [RedisStore(parse_address(url), clock=clock) for _ in range(2)]
    yield opened
    for store in opened:
        await store.close()


def demand(cost: int, ahead: int = 0, *, per_s: int = 1, name: str = "notifications") -> RateDemand:

    return RateDemand(name, per_s, cost, ahead)


@pytest.mark.parametrize("url", ["valkey", "sentinel", "cluster"], indirect=True)
async def test_nodes_share_the_burst_of_a_second(nodes: list[RedisStore]) -> None:
    first, second = nodes
    assert await first.take_rates("jobs", [demand(1)]) == RateGrant([0.0], is_ahead=True)
    (wait_s,), _ = await second.take_rates("jobs", [demand(1)])
    assert 0.5 < wait_s <= 1.0
    assert await second.take_rates("another", [demand(1)]) == RateGrant([0.0], is_ahead=True)


async def test_rate_refills(nodes: list[RedisStore], clock: Clock) -> None:
    first, second = nodes
    await first.take_rates("jobs", [demand(1)])
    clock.now += 1.0
    assert (await second.take_rates("jobs", [demand(1)])).waits_s == [0.0]


async def test_takes_ahead_only_what_is_left(nodes: list[RedisStore]) -> None:
    first, second = nodes
    assert await first.take_rates("jobs", [demand(10, 50, per_s=100)]) == ([0.0], True)
    assert await second.take_rates("jobs", [demand(10, 50, per_s=100)]) == ([0.0], False)


@pytest.mark.parametrize("url", ["valkey", "sentinel", "cluster"], indirect=True)
async def test_takes_from_all_rates_or_from_none(nodes: list[RedisStore]) -> None:
    first, second = nodes
    few = demand(1)
    much = demand(100, per_s=100, name="bytes")
    assert not any((await first.take_rates("jobs", [much])).waits_s)
    notifications_s, bytes_s = (await first.take_rates("jobs", [few, much])).waits_s
    assert (notifications_s, bytes_s > 0.5) == (0.0, True)
    assert not any((await second.take_rates("jobs", [few])).waits_s), "nothing was taken of it"


async def test_keys_hide_the_caller_share_a_partition_and_expire(
    nodes: list[RedisStore], url: str
) -> None:
    demands = [demand(1), demand(1, name="bytes")]
    await nodes[0].take_rates("a caller with spaces", demands)
    prefix = parse_address(url).prefix
    async with redis.asyncio.Redis.from_url(url.partition("?")[0]) as client:
        keys = await client.keys(f"{prefix}:*rate*")
        assert len(keys) == 2
        assert len({str(key).partition("{")[2].partition("}")[0] for key in keys}) == 1
        for key in keys:
            assert "caller" not in str(key)
            assert 0 < await client.pttl(key) <= 2100


async def test_clock_that_is_set_back_blocks_for_a_second_at_most(
    nodes: list[RedisStore], clock: Clock
) -> None:
    clock.now += 1000
    await nodes[0].take_rates("jobs", [demand(1)])
    clock.now -= 1000
    (wait_s,), _ = await nodes[0].take_rates("jobs", [demand(1)])
    assert 0 < wait_s <= 1.0


async def test_many_at_a_time_never_exceed_the_burst(nodes: list[RedisStore]) -> None:
    calls = [node.take_rates("jobs", [demand(1, per_s=20)]) for node in nodes * 50]
    granted = [not any(grant.waits_s) for grant in await asyncio.gather(*calls)]
    assert 20 <= sum(granted) <= 30, "20, and what refills meanwhile"


async def test_renewal_shares_the_round_trip_of_a_publish(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a batch over several rooms; only the first publish of a caller waits for its lease."""
    sent: list[set[bytes]] = []
    request = RedisConnection.request

    def record(connection: RedisConnection, commands: Sequence[Command], done: Any) -> None:
        sent.append({word for command in commands for word in command if isinstance(word, bytes)})
        request(connection, commands, done)

    store = RedisStore(parse_address(url))
    limits, claims = Limits(load_settings(publishes_per_s=1000), store), Claims(key_name="jobs")

    async def publish(number: int) -> None:
        counting = limits.check_publish(claims, 2, 300)
        if counting is not None:
            await counting
        await store.publish([publication(f"{number}", Room(f"user_{n}")) for n in range(2)])

    await publish(0)
    monkeypatch.setattr(RedisConnection, "request", record)
    for number in range(1, 50):
        await publish(number)
    await store.close()
    renewals = [each for each in sent if TAKE_RATES.sha in each]
    assert len(renewals) >= 4
    assert all(PUBLISH.sha in each for each in renewals)
    assert len([each for each in sent if PUBLISH.sha in each]) == 49


async def test_without_redis_it_raises() -> None:
    store = RedisStore(parse_address("redis://127.0.0.1:1"))
    with pytest.raises(StoreUnavailableError):
        await store.take_rates("jobs", [demand(1)])
    await store.close()
