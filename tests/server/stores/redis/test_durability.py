"""What a publish that was answered may rely on, by the level of durability."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.redis.durability import CONFIRM_MS
from tests.support.durability import Pair, running_pair
from tests.support.stores import publication
from tests.support.valkey import PROGRAMS, running_valkey


@pytest.fixture(params=PROGRAMS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with running_pair(tmp_path, request.param) as pair:
        yield pair


async def test_an_answered_publish_is_at_a_replica(pair: Pair) -> None:
    store = pair.open("replica")
    for number in range(20):
        await store.publish([publication(f"n{number}")])
        assert len(pair.texts()) == number + 1
    await store.close()


async def test_without_a_replica_a_publish_is_refused_and_reading_goes_on(pair: Pair) -> None:
    store = pair.open("replica")
    (first,) = await store.publish([publication("n1")])
    pair.replica.signal(signal.SIGSTOP)
    for call in (store.publish([publication("n2")]), store.check()):
        with pytest.raises(StoreUnavailableError, match="no replica has confirmed it within"):
            await call
    page = await store.read(publication("n2").room, first.cursor, 10)
    assert len(page.entries) == 1
    pair.replica.signal(signal.SIGCONT)
    pair.until_confirmed()
    (second,) = await store.publish([publication("n2")])
    assert second.duplicate, "repeating it is safe: it was stored"
    assert len(pair.texts()) == 2
    await store.close()


async def test_a_repeated_publish_waits_for_a_replica_too(pair: Pair) -> None:
    """Also at another node, whose connection has written nothing yet."""
    first, other = pair.open("replica"), pair.open("replica")
    await other.head(publication("n1").room)
    pair.replica.signal(signal.SIGSTOP)
    for store in (first, other, first):
        with pytest.raises(StoreUnavailableError, match="no replica has confirmed"):
            await store.publish([publication("n1")])
    pair.replica.signal(signal.SIGCONT)
    pair.until_confirmed()
    assert (await other.publish([publication("n1")]))[0].duplicate
    for store in (first, other):
        await store.close()


async def test_other_levels_do_not_wait_for_a_replica(pair: Pair) -> None:
    stores = [pair.open(level) for level in ("primary", "disk")]
    pair.replica.signal(signal.SIGSTOP)
    for number, store in enumerate(stores):
        await store.publish([publication("n0")])
        before = time.monotonic()
        await store.publish([publication(f"m{number}")])
        assert time.monotonic() - before < CONFIRM_MS / 1000
    pair.replica.signal(signal.SIGCONT)
    for store in stores:
        await store.close()


async def test_messages_arrive_while_no_replica_confirms(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """The probe of the feed waits behind the publishes, and must not count as silence."""
    store = pair.open("replica")
    room = publication("n1").room
    await store.join(room)
    pair.replica.signal(signal.SIGSTOP)
    for number in range(8):  # 4 s
        with pytest.raises(StoreUnavailableError, match="no replica has confirmed"):
            await store.publish([publication(f"n{number}")])
    assert "reconnecting" not in caplog.text
    pair.replica.signal(signal.SIGCONT)
    await store.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--appendonly no", "appendonly is no"),
        ("--appendfsync everysec", "appendfsync is everysec"),
        ("--user default on nopass ~* &* +@all -config", r"allow it .\+config.get."),
        ("--rename-command CONFIG x", "rejects CONFIG GET"),
    ],
)
@pytest.mark.parametrize("program", PROGRAMS)
async def test_disk_is_checked_at_the_start(
    tmp_path: Path, program: Path, options: str, said: str
) -> None:
    with (
        running_valkey(tmp_path, *options.split(), program=program) as server,
        pytest.raises(ConfigurationError, match=said) as wrong,
    ):
        open_store(f"{server.url}?durability=disk", Retention())
    assert "durability=disk" in str(wrong.value)


async def test_disk_is_checked_at_each_connection(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as server:
        store = open_store(f"{server.url}?durability=disk", Retention())
        await store.publish([publication("n1")])
        server.command("CONFIG", "SET", "appendfsync", "everysec")
        server.command("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(StoreUnavailableError, match="appendfsync is everysec"):
            await store.publish([publication("n2")])
        server.command("CONFIG", "SET", "appendfsync", "always")
        await store.publish([publication("n2")])
        await store.close()


async def test_the_description_names_the_level_and_what_a_crash_means(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as server:
        for level, promise in (
            ("primary", "a crash of Redis loses what it has not yet written"),
            ("replica", "answered when a replica has it"),
            ("disk", "answered when it is on the disk"),
        ):
            store = open_store(f"{server.url}?durability={level}", Retention())
            assert f"durability={level}: " in store.description
            assert promise in store.description
            await store.close()
