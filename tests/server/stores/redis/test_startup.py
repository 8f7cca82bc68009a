"""What an operator has to correct is one clear error at the start; it holds no secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import Retention
from tests.support.program import free_port
from tests.support.stores import publication
from tests.support.valkey import Valkey, running_valkey


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server with a password and a limited user."""
    folder: Path = tmp_path_factory.mktemp("valkey")
    options = "--requirepass hunter22 --user limited on >hunter23 +auth"
    with running_valkey(folder, *options.split(), password="hunter22") as server:
        yield server


def url(server: Valkey, credentials: str, rest: str = "") -> str:
    return f"redis://{credentials}127.0.0.1:{server.port}{rest}"


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        ("", "asks for a password"),
        (":hunter99@", "rejects the user or the password"),
        ("nobody:hunter99@", "rejects the user or the password"),
        ("limited:hunter23@", "may not use INFO; its ACL needs: "),
    ],
)
def test_rejected_credentials(valkey: Valkey, credentials: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as wrong:
        open_store(url(valkey, credentials), Retention())
    assert "--store" in str(wrong.value)
    assert "hunter" not in str(wrong.value)


def test_database_that_does_not_exist(valkey: Valkey) -> None:
    with pytest.raises(ConfigurationError, match="no database of this number"):
        open_store(url(valkey, ":hunter22@", "/99"), Retention())


def test_policy_that_evicts(valkey: Valkey) -> None:
    valkey.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigurationError, match=r"is allkeys-lru.*noeviction"):
            open_store(url(valkey, ":hunter22@"), Retention())
    finally:
        valkey.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_replica(valkey: Valkey, tmp_path: Path) -> None:
    with (
        running_valkey(tmp_path, "--replicaof", "127.0.0.1", str(valkey.port)) as replica,
        pytest.raises(ConfigurationError, match="is a replica; name its primary"),
    ):
        open_store(replica.url, Retention())


async def test_absent_server_is_logged_and_publishes_are_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    store = open_store(f"redis://:hunter22@127.0.0.1:{free_port()}", Retention())
    assert "Connection refused" in caplog.text
    with pytest.raises(StoreUnavailableError, match="Connection refused"):
        await store.publish([publication("n1")])
    assert "hunter22" not in caplog.text + store.description
    await store.close()


async def test_user_and_database_are_used(valkey: Valkey) -> None:
    store = open_store(url(valkey, "default:hunter22@", "/3?prefix=mine"), Retention())
    await store.publish([publication("n1")])
    await store.close()
    with valkey.client(db=3) as client:
        assert [key.partition(b":")[0] for key in client.keys("*")] == [b"mine"] * client.dbsize()
        assert client.dbsize() > 0


async def test_full_memory_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    with running_valkey(tmp_path / "valkey") as server:
        store = open_store(server.url, Retention())
        await store.publish([publication("n1")])
        server.command("CONFIG", "SET", "maxmemory", 1_000_000)
        for call in (store.publish([publication("n2", size=1000)]), store.check()):
            with pytest.raises(StoreUnavailableError, match="out of memory"):
                await call
        server.command("CONFIG", "SET", "maxmemory", 0)
        (result,) = await store.publish([publication("n2")])
        assert not result.duplicate
        await store.close()


async def test_key_of_another_type_is_a_clear_error(tmp_path: Path) -> None:
    with running_valkey(tmp_path / "valkey") as server:
        store = open_store(server.url, Retention())
        await store.publish([publication("n1")])
        (log,) = server.command("KEYS", "*:log:*")
        server.command("SET", log, "x")
        with pytest.raises(StoreUnavailableError, match="is of another type"):
            await store.publish([publication("n2")])
        server.command("DEL", log)
        (result,) = await store.publish([publication("n2")])
        assert not result.duplicate, "the refused publish has left nothing behind"
        await store.close()


async def test_keys_of_another_version_are_not_used(tmp_path: Path) -> None:
    """A node of another version does not start, and one that runs is not ready."""
    with running_valkey(tmp_path / "valkey") as server:
        store = open_store(server.url, Retention())
        await store.publish([publication("n1")])
        server.command("SET", "synap:{0}:schema", "1")
        said = "prefix synap have version 1, and this server uses 3: run one version"
        with pytest.raises(StoreUnavailableError, match=said):
            await store.check()
        with pytest.raises(ConfigurationError, match=said):
            open_store(server.url, Retention())
        await open_store(f"{server.url}?prefix=synap2", Retention()).close()
        await store.close()
