"""No connection leads to a primary that was replaced, whenever the Sentinels name another one."""

from __future__ import annotations

import asyncio

import pytest

from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.connection import RedisConnectionLostError
from synap_realtime.server.stores.redis.topology import Topology
from tests.support.scripted_redis import answering, bulk
from tests.support.timeouts import TIMEOUT_S


@pytest.mark.parametrize("noticed_by", ["another connection", "nobody yet"])
async def test_connection_that_is_opened_during_a_failover(noticed_by: str) -> None:
    """The former primary hangs, and answers as one when others use its successor already."""
    always, resumed = asyncio.Event(), asyncio.Event()
    always.set()
    primary = 0

    def sentinel(request: bytes) -> bytes:
        if b"SENTINEL" not in request:
            return b""
        return bulk("config-epoch", "1") + bulk("127.0.0.1", str(primary))

    switches = 0

    def on_switch() -> None:
        nonlocal switches
        switches += 1

    def role(_request: bytes) -> bytes:
        return bulk("master")

    async with (
        asyncio.timeout(TIMEOUT_S),
        answering(role, resumed) as former,
        answering(role, always) as successor,
        answering(sentinel, always) as port,
    ):
        primary = former
        topology = Topology(parse_address(f"redis+sentinel://127.0.0.1:{port}/main"), on_switch)
        hanging = asyncio.create_task(topology.connect())
        while topology._primary is None:  # noqa: ASYNC110 - it asks
            await asyncio.sleep(0)
        primary = successor
        if noticed_by == "another connection":
            connection = await topology.connect()
            assert switches == 1, "the connections that exist are replaced"
            resumed.set()
            with pytest.raises(RedisConnectionLostError, match="not the primary any more"):
                await hanging
        else:
            resumed.set()
            (await hanging).abort(RedisConnectionLostError("the test ends"))
            connection = await topology.connect()
            assert switches == 1
        connection.abort(RedisConnectionLostError("the test ends"))
        await topology.close()
