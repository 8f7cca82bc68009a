"""A user that lacks a permission is one clear error at the start, with the rules to grant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.errors import SENTINEL_RULE
from synap_realtime.server.stores.redis.permissions import acl_rule, needed_permissions
from tests.support.folding import write
from tests.support.polling import until_ready
from tests.support.stores import publication
from tests.support.valkey import PROGRAMS, Valkey, running_cluster, running_valkey

Servers = Iterator[Valkey]
OPTIONS = "?prefix=app&durability=disk"
ADDRESS = parse_address(f"redis://host/1{OPTIONS}")
RULE = acl_rule(ADDRESS)
NEEDED = [each.command for each in needed_permissions(ADDRESS)]


@pytest.fixture(scope="module", params=PROGRAMS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Servers:
    with running_valkey(tmp_path_factory.mktemp("acl"), program=request.param) as server:
        yield server


def open_as(server: Valkey, rule: str) -> None:
    """Open a store as a user with rules, and close its connection for the check."""
    server.command("ACL", "SETUSER", "app", "reset", "on", ">hunter22", *rule.split())
    open_store(f"redis://app:hunter22@127.0.0.1:{server.port}/1{OPTIONS}", Retention())


async def test_the_rules_are_enough(server: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    server.command("ACL", "SETUSER", "app", "reset", "on", ">hunter22", *RULE.split())
    store = open_store(f"redis://app:hunter22@127.0.0.1:{server.port}/1{OPTIONS}", Retention())
    room = publication("n1").room
    await store.join(room)
    (first,) = await store.publish([publication("n1")])
    for _ in range(2):
        await store.publish([publication("n1")])
    for id, piece in (("p1", "a"), ("p2", "b")):
        await write(store, id, piece=piece, room=room)
    await store.head(Room("user_2"))
    assert (await store.read(room, store.earliest(), 10)).entries
    for device in range(70):
        store.ack(room, first.cursor, f"device{device}")
    assert await store.get_ack(room, "device69")
    await store.usage()
    store.leave(room)
    await until_ready(store)
    await store.close()
    assert caplog.text == ""


def test_the_documentation_has_the_rules() -> None:
    text = (Path(__file__).parents[4] / "docs" / "scale-out.md").read_text()
    documented = text.partition("ACL SETUSER rooms on >password")[2].partition("```")[0].split()
    every = parse_address("redis+sentinel://host/main/1?durability=replica")
    assert documented == acl_rule(every).split()
    assert f"ACL SETUSER rooms on >password {SENTINEL_RULE}\n" in text


@pytest.mark.parametrize("command", NEEDED)
def test_a_missing_command_is_named(server: Valkey, command: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        open_as(server, f"{RULE} -{command.lower()}")
    said = str(wrong.value)
    if command == "CONFIG|GET":
        assert "rejects CONFIG GET" in said
        assert "+config|get" in said
    else:
        assert f"may not use {command}; its ACL needs: {RULE}" in said
    assert "--store" in said
    assert "hunter22" not in said


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("~app:*", "the keys ~app:*;"), ("&app:*", "the channels &app:*;")],
)
def test_a_missing_pattern_is_named(server: Valkey, pattern: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"may not use {re.escape(said)}"):
        open_as(server, RULE.replace(pattern, pattern.replace("app", "other")))


def test_all_that_is_missing_is_named_together(server: Valkey) -> None:
    with pytest.raises(ConfigurationError, match=r"XADD, XRANGE, the channels &app:\*;"):
        open_as(server, RULE.replace("&app:*", "") + " -xadd -xrange")


async def test_a_permission_that_is_taken_away_later_is_named(server: Valkey) -> None:
    server.command("ACL", "SETUSER", "app", "reset", "on", ">hunter22", *RULE.split())
    store = open_store(f"redis://app:hunter22@127.0.0.1:{server.port}/1{OPTIONS}", Retention())
    await store.publish([publication("n1")])
    server.command("ACL", "SETUSER", "app", "-xadd")
    with pytest.raises(StoreUnavailableError, match="lacks a permission"):
        await store.publish([publication("n2")])
    server.command("ACL", "SETUSER", "app", "+xadd")
    assert not (await store.publish([publication("n2")]))[0].duplicate
    await store.close()


async def test_the_rules_are_enough_for_a_cluster(tmp_path: Path) -> None:
    with running_cluster(tmp_path, replicas=False) as cluster:
        address = parse_address(cluster.url)
        for server in cluster.nodes:
            rule = acl_rule(address).split()
            server.command("ACL", "SETUSER", "app", "reset", "on", ">hunter22", *rule)
        url = cluster.url.replace("://", "://app:hunter22@")
        store = open_store(url, Retention())
        await store.join(publication("n1").room)
        await store.publish([publication("n1")])
        await store.close()
        for server in cluster.nodes:
            server.command("ACL", "SETUSER", "app", "-cluster|slots")
        with pytest.raises(ConfigurationError, match=r"may not use CLUSTER.SLOTS"):
            open_store(url, Retention())


def test_a_renamed_command_is_named(tmp_path: Path) -> None:
    with (
        running_valkey(tmp_path, "--rename-command", "XADD", "x") as server,
        pytest.raises(ConfigurationError, match="does not know XADD"),
    ):
        open_store(server.url, Retention())
