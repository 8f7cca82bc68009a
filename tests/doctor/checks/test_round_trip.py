"""A notification completes a round trip, or the finding names the step that failed."""

from __future__ import annotations

import pytest

from synap_realtime.server.serve import running_server
from tests.support.credentials import API_KEY, SECRET
from tests.support.servers import serving

from ..conftest import WRONG_KEY, WRONG_SECRET, diagnosis, proxy

CHECKS = ("publish", "WebSocket", "event stream")


async def test_without_keys_no_credentials_are_needed(rooms: str) -> None:
    found = await diagnosis(rooms)
    assert [found[check].level for check in CHECKS] == ["ok", "ok", "ok"]
    assert found["WebSocket"].found.endswith(" ms")


async def test_with_keys_and_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_API_KEY", API_KEY)
    monkeypatch.setenv("REALTIME_TOKEN_SECRET", SECRET)
    monkeypatch.setenv("SYNAP_REALTIME_TOKEN_ISSUER", "us")
    async with serving(running_server, token_issuer="us") as url:
        found = await diagnosis(url)
    assert [found[check].level for check in CHECKS] == ["ok", "ok", "ok"]


async def test_names_the_missing_credential() -> None:
    async with serving(running_server) as url:
        found = await diagnosis(url)
    assert [found[check].level for check in CHECKS] == ["warn", "warn", "warn"]
    assert "REALTIME_API_KEY is not set" in found["publish"].found
    assert "REALTIME_TOKEN_SECRET is not set" in found["WebSocket"].found


@pytest.mark.parametrize("key", [WRONG_KEY, f"{API_KEY}\n{API_KEY}"])
async def test_a_wrong_key(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("REALTIME_API_KEY", key)
    monkeypatch.setenv("REALTIME_TOKEN_SECRET", SECRET)
    async with serving(running_server) as url:
        found = await diagnosis(url)
    assert [found[check].level for check in CHECKS] == ["fail", "ok", "ok"]
    assert "REALTIME_API_KEY" in str(found["publish"])


async def test_the_key_counts_and_not_a_user_in_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REALTIME_API_KEY", API_KEY)
    monkeypatch.setenv("REALTIME_TOKEN_SECRET", SECRET)
    async with serving(running_server) as url:
        found = await diagnosis(url.replace("//", "//user:hunter22@"))
    assert [found[check].level for check in CHECKS] == ["ok", "ok", "ok"]
    assert not any("hunter22" in str(finding) for finding in found.values())


@pytest.mark.parametrize("secret", [WRONG_SECRET, "short"])
async def test_a_wrong_secret(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("REALTIME_API_KEY", API_KEY)
    monkeypatch.setenv("REALTIME_TOKEN_SECRET", secret)
    async with serving(running_server) as url:
        found = await diagnosis(url)
    assert found["publish"].level == "ok"
    failed = found["WebSocket"] if secret == WRONG_SECRET else found["round trip"]
    assert (failed.level, "REALTIME_TOKEN_SECRET" in str(failed)) == ("fail", True)


async def test_a_proxy_that_passes_everything(rooms: str) -> None:
    async with proxy(rooms) as url:
        found = await diagnosis(url)
    assert [found[check].level for check in CHECKS] == ["ok", "ok", "ok"]


async def test_a_proxy_that_passes_no_websockets(rooms: str) -> None:
    async with proxy(rooms, drops_upgrades=True) as url:
        found = await diagnosis(url)
    assert [found[check].level for check in CHECKS] == ["ok", "fail", "ok"]
    assert "Upgrade" in found["WebSocket"].advice


async def test_a_proxy_that_holds_the_event_stream_back(rooms: str) -> None:
    async with proxy(rooms, holds_events=True) as url:
        found = await diagnosis(url)
    assert [found[check].level for check in CHECKS] == ["ok", "ok", "fail"]
    assert "proxy_buffering off" in found["event stream"].advice
