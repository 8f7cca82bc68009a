"""Sentinels that ask for a password of their own; each mistake is one clear error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.redis.errors import SENTINEL_RULE
from tests.support.command_line import run_blocking
from tests.support.polling import until, until_ready
from tests.support.stores import publication
from tests.support.valkey import (
    PROGRAMS,
    Sentinel,
    Valkey,
    running_sentinel,
    running_valkey,
)

PASSWORD, USER_PASSWORD = "default-77+&x", "hunter-22+&x"
WRITTEN = "sentinel_username=rooms&sentinel_password=hunter-22+%26x"
BY_PASSWORD = "sentinel_password=default-77%2B%26x"
RIGHT = pytest.mark.parametrize("login", [WRITTEN, BY_PASSWORD])


@pytest.fixture(scope="module", params=PROGRAMS)
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Valkey, Sentinel]]:
    folder, program = tmp_path_factory.mktemp("sentinel"), request.param
    with (
        running_valkey(folder / "primary", program=program) as primary,
        running_sentinel(
            *(folder / "sentinel", primary.port, program),
            lines=(
                f"requirepass {PASSWORD}",
                f"user rooms on >{USER_PASSWORD} {SENTINEL_RULE}",
                f"user other on >{USER_PASSWORD} {SENTINEL_RULE} -sentinel|master",
                f"user deaf on >{USER_PASSWORD} {SENTINEL_RULE} -subscribe",
            ),
            password=PASSWORD,
        ) as sentinel,
    ):
        yield primary, sentinel


def url(*sentinels: Valkey, login: str) -> str:
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
    return f"redis+sentinel://{hosts}/main?{login}"


@RIGHT
async def test_logs_in_at_the_sentinels(
    servers: tuple[Valkey, Sentinel], login: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(url(servers[1], login=login), Retention())
    await store.publish([publication("n1")])
    await until_ready(store)
    await store.close()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ("prefix=synap", r"ask for a password: redis\+sentinel://host/name\?sentinel_password=…"),
        ("sentinel_password=wrong-word", "reject sentinel_username or sentinel_password"),
        (f"{WRITTEN}y", "reject sentinel_username or sentinel_password"),
        (WRITTEN.replace("rooms", "other"), r"sentinel.master.*its ACL needs: resetchannels"),
    ],
)
def test_a_wrong_login_is_one_clear_error(
    servers: tuple[Valkey, Sentinel], login: str, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as wrong:
        open_store(url(servers[1], login=login), Retention())
    assert "--store" in str(wrong.value)
    assert "wrong-word" not in str(wrong.value)
    assert "hunter" not in str(wrong.value)


def test_a_password_that_the_sentinels_have_not(
    servers: tuple[Valkey, Sentinel], tmp_path: Path
) -> None:
    with (
        running_sentinel(tmp_path, servers[0].port) as sentinel,
        pytest.raises(ConfigurationError, match="have no password: remove sentinel_password"),
    ):
        open_store(url(sentinel, login=BY_PASSWORD), Retention())


async def test_one_sentinel_with_another_password_is_logged_once(
    servers: tuple[Valkey, Sentinel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    primary, right = servers
    with running_sentinel(tmp_path, primary.port) as wrong:
        store = open_store(url(wrong, right, login=BY_PASSWORD), Retention())
        await store.publish([publication("n1")])
        await until_ready(store)
        await store.close()
    lines = [each.message for each in caplog.records if "is not used" in each.message]
    assert 1 <= len(lines) <= 2, "at the start, and while it runs"
    assert f"Sentinel 127.0.0.1:{wrong.port} is not used: the Sentinels have no pass" in lines[0]


async def test_a_user_that_may_not_subscribe_is_logged(
    servers: tuple[Valkey, Sentinel], caplog: pytest.LogCaptureFixture
) -> None:
    """The Sentinels are asked every few seconds only."""
    store = open_store(url(servers[1], login=WRITTEN.replace("rooms", "deaf")), Retention())
    await store.publish([publication("n1")])
    await until(lambda: "lacks a permission" in caplog.text)
    assert "subscribe" in caplog.text
    await store.close()


def test_doctor_shows_no_password(servers: tuple[Valkey, Sentinel]) -> None:
    for login in (WRITTEN, f"{WRITTEN}y"):
        done = run_blocking("doctor", "--store", url(servers[1], login=login))
        assert f"127.0.0.1:{servers[1].port}/main" in done.stdout
        assert "hunter" not in done.stdout + done.stderr
