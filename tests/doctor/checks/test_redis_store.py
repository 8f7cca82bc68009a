"""Findings about a store on Redis, which the doctor only reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime.doctor.finding import Finding
from synap_realtime.doctor.redis_store import (
    rate_clock,
    rate_memory,
    rate_persistence,
    rate_replicas,
)
from synap_realtime.server.stores.redis.address import parse_address
from tests.support.command_line import run
from tests.support.program import free_port
from tests.support.valkey import Valkey, running_valkey

from ..conftest import findings

PASSWORD = "hunter22/?"
WRITTEN = "hunter22%2F%3F"
HERE = "settings of serve here: "


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    folder: Path = tmp_path_factory.mktemp("valkey")
    options = ("--requirepass", PASSWORD, *["--user", "limited", "on", ">limitedword", "+info"])
    with running_valkey(folder, *options, password=PASSWORD) as server:
        yield server


def url(server: Valkey, credentials: str = f":{WRITTEN}@", rest: str = "") -> str:
    return server.url.replace("//", f"//{credentials}") + rest


async def said_of(store: str) -> dict[str, Finding]:
    found = await findings("http://127.0.0.1:9", store=store)
    text = "\n".join(map(str, found))
    for secret in (PASSWORD, WRITTEN, "limitedword", "wrongword"):
        assert secret not in text
    return {each.check: each for each in found}


async def test_a_good_store_is_described_and_not_changed(valkey: Valkey) -> None:
    found = await said_of(url(valkey))
    assert found["store"].level == "ok"
    assert f"127.0.0.1:{valkey.port}/0: Valkey " in found["store"].found
    assert found["persistence"].found == f"{HERE}appendonly yes, appendfsync always"
    assert found["replicas"].found == f"{HERE}none; there is no failover"
    assert found["memory"].found.endswith("used, without maxmemory")
    assert found["store clock"].level == "ok"
    assert valkey.command("DBSIZE") == 0


@pytest.mark.parametrize(
    ("credentials", "rest", "said"),
    [
        ("", "", "asks for a password"),
        (":wrongword@", "", "rejects the user or the password"),
        ("limited:limitedword@", "", "may not use SCRIPT.LOAD; its ACL needs: ~synap"),
        (f":{WRITTEN}@", "/99", "no database of this number"),
        (f":{WRITTEN}@", "?durability=none", "expected one of primary, replica, disk"),
        (f":{WRITTEN}@", "?wrong=1", "the options after"),
    ],
)
async def test_what_a_node_would_not_start_with(
    valkey: Valkey, credentials: str, rest: str, said: str
) -> None:
    found = (await said_of(url(valkey, credentials, rest)))["store"]
    assert found.level == "fail"
    assert said.replace(".", "|") in found.found or said in found.found
    assert found.advice


async def test_a_server_that_is_away() -> None:
    found = (await said_of(f"redis://:{WRITTEN}@127.0.0.1:{free_port()}"))["store"]
    assert found.level == "fail"
    assert "Connection refused" in found.found


async def test_the_environment_names_the_store(valkey: Valkey) -> None:
    _, out, errors = await run("doctor", SYNAP_REALTIME_STORE=url(valkey))
    assert errors == ""
    assert f"ok    store          {HERE}127.0.0.1:{valkey.port}/0: Valkey" in out
    assert PASSWORD not in out
    assert WRITTEN not in out


async def test_a_replica_that_is_promised_and_missing(valkey: Valkey) -> None:
    found = (await said_of(url(valkey, rest="?durability=replica")))["replicas"]
    assert (found.level, "needs one" in found.found) == ("fail", True)


def test_ratings() -> None:
    address = parse_address("redis://host")
    sentinel = parse_address("redis+sentinel://host/main")
    online, behind = {"slave0": "ip=a,state=online"}, {"slave0": "ip=a,state=wait_bgsave"}
    for finding, level in (
        (rate_persistence({"aof_enabled": "0"}, "always"), "warn"),
        (rate_persistence({"aof_enabled": "1"}, ""), "ok"),
        (rate_persistence({"aof_enabled": "1", "aof_last_write_status": "err"}, ""), "fail"),
        (rate_replicas({}, address), "ok"),
        (rate_replicas({}, sentinel), "warn"),
        (rate_replicas({"connected_slaves": "1", **online}, sentinel), "ok"),
        (rate_replicas({"connected_slaves": "1", **behind}, sentinel), "warn"),
        (rate_memory({"used_memory": "90", "maxmemory": "100"}), "warn"),
        (rate_memory({"used_memory": "10", "maxmemory": "100"}), "ok"),
        (rate_clock(1.0), "ok"),
        (rate_clock(60.0), "warn"),
    ):
        assert finding.level == level, finding
