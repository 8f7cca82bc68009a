"""Two nodes on one Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.valkey import Valkey, running_valkey


@pytest.fixture(scope="module")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def empty_valkey(_running: Valkey) -> Valkey:
    """An empty server of the test's module."""
    _running.command("FLUSHALL")
    return _running


@pytest.fixture
async def nodes(empty_valkey: Valkey) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two stores on :func:`empty_valkey`."""
    address = parse_address(empty_valkey.url)
    stores = RedisStore(address), RedisStore(address)
    yield stores
    for store in stores:
        await store.close()
