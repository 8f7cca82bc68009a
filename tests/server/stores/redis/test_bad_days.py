"""What happens to a server that runs: each is a clear message, nothing is lost, and it recovers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import Entry, LinkedStore, Retention, Store
from tests.support.scripted_redis import info, scripted_redis
from tests.support.stores import publication
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import PROGRAMS, Valkey, running_sentinel, running_valkey


class Node:
    """A store with a subscriber, whose ids are collected."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ids: list[str] = []
        self.gaps = 0
        store.subscribe(self.deliver, self.on_gap)

    def deliver(self, _room: Room, entry: Entry, _published_at: float | None) -> int:
        self.ids.append(entry.text.partition('"id": "')[2].partition('"')[0])
        return 1

    def on_gap(self, _room: Room, _position: Cursor) -> None:
        self.gaps += 1

    async def publish(self, id: str, *, size: int = 0) -> bool:
        """Return whether it was stored now."""
        (result,) = await self.store.publish([publication(id, size=size)])
        return not result.duplicate

    async def until_ready(self) -> None:
        await eventually(self.store.check)

    async def until_received(self, *ids: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.ids != list(ids):  # noqa: ASYNC110 - the store announces nothing else
                await asyncio.sleep(0.02)


@asynccontextmanager
async def node(server: Valkey, options: str = "") -> AsyncIterator[Node]:
    node = Node(open_store(f"{server.url}{options}", Retention()))
    await eventually(lambda: node.store.join(publication("n").room))
    await node.until_ready()
    try:
        yield node
    finally:
        await node.store.close()


async def eventually(call: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await call()
                return
            await asyncio.sleep(0.05)


async def is_refused(node: Node, id: str, match: str) -> None:
    """Check that neither a publish nor the readiness succeeds, with the same reason."""
    for call in (node.store.publish([publication(id, size=1000)]), node.store.check()):
        with pytest.raises(StoreUnavailableError, match=match):
            await call


@pytest.fixture(params=PROGRAMS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Valkey]:
    with running_valkey(tmp_path / "redis", program=request.param) as server:
        yield server


async def test_full_memory(server: Valkey) -> None:
    """Reading goes on, subscribers may leave, and publishing recovers by itself."""
    async with node(server) as running:
        assert await running.publish("n1")
        server.command("CONFIG", "SET", "maxmemory", 1)
        await is_refused(running, "n2", "out of memory: raise its maxmemory")
        room = publication("n").room
        page = await running.store.read(room, running.store.earliest(), 10)
        assert len(page.entries) == 1
        server.command("CONFIG", "SET", "maxmemory", 0)
        await running.until_ready()
        assert await running.publish("n2")
        await running.until_received("n1", "n2")
        assert running.gaps == 0


async def test_snapshot_that_cannot_be_saved(server: Valkey, tmp_path: Path) -> None:
    """MISCONF, by stop-writes-on-bgsave-error."""
    async with node(server) as running:
        assert await running.publish("n1")
        folder = tmp_path / "redis" / "dump.rdb"
        folder.mkdir()  # the file cannot be renamed to it
        (folder / "x").touch()
        server.command("CONFIG", "SET", "save", "3600 1")
        server.command("BGSAVE")
        await until_info(server, "persistence", "rdb_last_bgsave_status", "err")
        await is_refused(running, "n2", "cannot save its snapshot")
        (folder / "x").unlink()
        folder.rmdir()
        server.command("BGSAVE")
        await until_info(server, "persistence", "rdb_last_bgsave_status", "ok")
        await running.until_ready()
        assert await running.publish("n2")
        await running.until_received("n1", "n2")
        assert running.gaps == 0


@pytest.mark.parametrize("program", PROGRAMS)
async def test_full_disk_under_the_append_only_file(tmp_path: Path, program: Path) -> None:
    """MISCONF, by the limit of the size of its files instead of a disk of that size."""
    with running_valkey(tmp_path, "--appendfsync", "everysec", program=program) as server:
        async with node(server) as running:
            assert await running.publish("n1")
            unlimited = resource.RLIM_INFINITY
            limit(server, 4096)
            with contextlib.suppress(StoreUnavailableError):
                for number in range(1000):
                    await running.publish(f"x{number}", size=1000)
            await is_refused(running, "n2", "append only file: free space")
            stored = list(running.ids)
            limit(server, unlimited)
            await running.until_ready()
            assert await running.publish("n2")
            await running.until_received(*stored, "n2")
            assert running.gaps == 0


def limit(server: Valkey, size: int) -> None:
    """Limit the size of the files that a process may write."""
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def until_info(server: Valkey, section: str, name: str, value: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while server.command("INFO", section)[name] != value:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_role_that_changes(server: Valkey, tmp_path: Path) -> None:
    """READONLY: the server becomes a replica of another one, and a primary again."""
    with running_valkey(tmp_path / "other") as other:
        async with node(server) as running:
            assert await running.publish("n1")
            server.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
            server.command("REPLICAOF", "127.0.0.1", 1)
            with pytest.raises(StoreUnavailableError, match="is a replica"):
                await running.publish("n2")
            server.command("REPLICAOF", "NO", "ONE")
            await running.until_ready()
            assert await running.publish("n2")
            await running.until_received("n1", "n2")
        assert other.command("PING")


async def test_server_that_loads_its_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """LOADING: it is logged at the start, and the node becomes ready by itself."""
    with running_valkey(tmp_path, "--appendonly", "no") as server:
        with server.client() as client:
            client.mset({f"key{number}": "x" * 1000 for number in range(2000)})
            client.save()
        server.kill()
        slowly = ("--key-load-delay", "2500", "--loading-process-events-interval-bytes", "1024")
        server.launch(*slowly)
        await until_listening(server)
        caplog.set_level(logging.WARNING)
        store = open_store(server.url, Retention())
        assert "Redis is loading its data; the server is not ready until this ends" in caplog.text
        with pytest.raises(StoreUnavailableError, match="loading"):
            await store.check()
        await eventually(store.check)
        await store.publish([publication("n1")])
        await store.close()


async def until_listening(server: Valkey) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port)):
                return
            await asyncio.sleep(0.01)


async def test_too_many_clients(server: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged at the start, and the node becomes ready by itself."""
    server.command("CONFIG", "SET", "maxclients", 1)
    with server.client(single_connection_client=True) as client:
        client.ping()
        store = open_store(server.url, Retention())
        assert "accepts no more connections: raise its maxclients" in caplog.text
        with pytest.raises(StoreUnavailableError, match="raise its maxclients"):
            await store.publish([publication("n1")])
        client.config_set("maxclients", 100)
    await eventually(store.check)
    await store.publish([publication("n1")])
    await store.close()


async def test_flushed_scripts(server: Valkey) -> None:
    async with node(server) as running:
        for number in range(3):
            server.command("SCRIPT", "FLUSH")
            assert await running.publish(f"n{number}")
        await running.until_received("n0", "n1", "n2")
        assert running.gaps == 0


async def test_too_few_replicas_to_write(server: Valkey) -> None:
    async with node(server) as running:
        server.command("CONFIG", "SET", "min-replicas-to-write", 1)
        await is_refused(running, "n1", "fewer replicas than min-replicas-to-write")
        server.command("CONFIG", "SET", "min-replicas-to-write", 0)
        assert await running.publish("n1")


async def test_key_of_another_type(server: Valkey) -> None:
    async with node(server, "?prefix=app") as running:
        assert await running.publish("n1")
        (log,) = server.command("KEYS", "app:*:log:*")
        partition, _, room = log.partition(b":log:")
        for key in (log, partition + b":room:" + room, partition + b":state"):
            server.command("RENAME", key, "kept")
            server.command("SADD", key, "x")
            said = r"a key of app:\{\d+\}:\* is of another type: .*\?prefix="
            with pytest.raises(StoreUnavailableError, match=said):
                await running.publish("n2")
            server.command("RENAME", "kept", key)
        assert await running.publish("n2")
        await running.until_received("n1", "n2")


# At the start


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14 is too old: use 7.0 or later, or Valkey"),
        ({"redis_version": "7.0.0", "run_id": ""}, "no run_id"),
        ({"redis_version": "7.2.4", "maxmemory_policy": "allkeys-lru"}, "is allkeys-lru"),
        ({"redis_version": "7.2.4", "role": "slave"}, "is a replica; name its primary"),
    ],
)
def test_unsuitable_servers(fields: dict[str, str], said: str) -> None:
    fields = {"run_id": "a" * 40, **fields}
    if not fields["run_id"]:
        del fields["run_id"]
    with (
        scripted_redis(info(**fields)) as port,
        pytest.raises(ConfigurationError, match=said) as wrong,
    ):
        open_store(f"redis://127.0.0.1:{port}", Retention())
    assert "--store" in str(wrong.value)


def test_what_is_no_redis(caplog: pytest.LogCaptureFixture) -> None:
    with scripted_redis(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        open_store(f"redis://127.0.0.1:{port}", Retention())
    assert "is no Redis without TLS: check host and port" in caplog.text


def test_sentinel_without_its_scheme(server: Valkey, tmp_path: Path) -> None:
    with (
        running_sentinel(tmp_path / "sentinel", server.port) as sentinel,
        pytest.raises(ConfigurationError, match=r"is a Sentinel: write redis\+sentinel://"),
    ):
        open_store(sentinel.url, Retention())


def test_password_that_the_server_has_not(server: Valkey) -> None:
    with pytest.raises(ConfigurationError, match="has no password: remove the one in --store"):
        open_store(server.url.replace("//", "//:hunter22@"), Retention())


def test_host_that_does_not_exist(caplog: pytest.LogCaptureFixture) -> None:
    open_store("redis://host.invalid", Retention())
    assert "the host of Redis is unknown" in caplog.text


# What the metrics and the log say


async def test_counts_reconnects_heals_and_the_time_without_messages(server: Valkey) -> None:
    async with node(server) as running:
        assert isinstance(running.store, LinkedStore)
        before = running.store.link_stats()
        assert before.unconfirmed_subscriptions == before.failovers == before.gaps == 0
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
        server.command("CLIENT", "KILL", "TYPE", "normal")
        assert await running.publish("n1")
        await running.until_received("n1")
        await running.until_ready()
        after = running.store.link_stats()
        assert after.message_reconnects > before.message_reconnects
        assert after.call_reconnects > before.call_reconnects
        assert after.heals > before.heals
        assert before.deaf_s < after.deaf_s < TIMEOUT_S
        assert after.unconfirmed_subscriptions == after.failovers == after.gaps == 0


async def test_counts_failovers_gaps_and_subscriptions_that_nobody_confirms(
    server: Valkey,
) -> None:
    async with node(server) as running:
        assert isinstance(running.store, LinkedStore)
        assert await running.publish("n1")
        server.kill()
        await asyncio.sleep(0.1)
        stopped = running.store.link_stats()
        assert stopped.unconfirmed_subscriptions > 0
        await asyncio.sleep(0.1)
        assert running.store.link_stats().deaf_s > stopped.deaf_s + 0.05
        server.start()
        await running.until_ready()
        assert await running.publish("n2")
        async with asyncio.timeout(TIMEOUT_S):
            while not running.gaps:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        after = running.store.link_stats()
        assert (after.unconfirmed_subscriptions, after.failovers, after.gaps) == (0, 1, 1)


async def test_a_refusal_is_logged_once_and_its_end_too(
    server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with node(server) as running:
        server.command("CONFIG", "SET", "min-replicas-to-write", 1)
        for _ in range(3):
            await is_refused(running, "n1", "min-replicas-to-write")
        server.command("CONFIG", "SET", "min-replicas-to-write", 0)
        for number in range(3):
            await running.publish(f"n{number}")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "Redis is unavailable",
        "Redis is available again",
    ]
