"""Findings about the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from synap_realtime.doctor.checks.settings import open_files
from synap_realtime.server.serve import running_server
from tests.support.credentials import API_KEY, ORIGIN, SECRET
from tests.support.servers import serving

from ..conftest import diagnosis, findings


async def test_suggests_the_variable_for_a_typo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_RETENTION_COUNTS", "5")
    monkeypatch.setenv("SYNAP_REALTIME_PORT", "8788")
    found = [finding for finding in await findings() if finding.check == "environment"]
    assert [finding.level for finding in found] == ["warn"]
    assert "SYNAP_REALTIME_RETENTION_COUNTS" in found[0].found
    assert "SYNAP_REALTIME_RETENTION_COUNT?" in found[0].advice


async def test_names_an_invalid_setting_and_checks_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_PORT", "many")
    monkeypatch.setenv("SYNAP_REALTIME_STORE", f"sqlite:///{tmp_path}/none/rooms.db")
    found = await diagnosis()
    assert found["configuration"].level == "fail"
    assert "SYNAP_REALTIME_PORT" in found["configuration"].found
    assert "does not exist" in found["store"].found


async def test_a_host_that_others_reach_needs_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    found = (await diagnosis(host="0.0.0.0"))["host"]
    assert (found.level, "synap-realtime generate-keys" in found.advice) == ("fail", True)
    monkeypatch.setenv("SYNAP_REALTIME_API_KEYS", f"jobs={API_KEY}")
    assert (await diagnosis(host="0.0.0.0"))["host"].level == "ok"


async def test_keys_without_origins_keep_browsers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_TOKEN_SECRETS", SECRET)
    found = (await diagnosis())["origins"]
    assert (found.level, "SYNAP_REALTIME_ALLOWED_ORIGINS" in found.advice) == ("warn", True)
    monkeypatch.setenv("SYNAP_REALTIME_ALLOWED_ORIGINS", ORIGIN)
    assert (await diagnosis())["origins"].level == "ok"


def test_each_connection_is_an_open_file() -> None:
    assert open_files(1024, 1024, 20_000).level == "warn"
    assert open_files(1024, 65536, 20_000).level == "ok"
    assert open_files(1024, None, 0).level == "ok"


OF_A_SERVER = {"host", "origins", "store", "keys", "key file", "open files", "disk space"}


async def test_an_application_receives_nothing_of_server_settings_that_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server beside it has other settings: here there are only its address and credentials."""
    monkeypatch.setenv("REALTIME_TOKEN_SECRET", SECRET)
    monkeypatch.setenv("REALTIME_API_KEY", API_KEY)
    async with serving(running_server) as url:
        monkeypatch.setenv("REALTIME_URL", url)
        found = await findings()
    assert not {finding.check for finding in found} & OF_A_SERVER
    assert {finding.level for finding in found} == {"ok"}


async def test_labels_findings_about_server_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_STORE", f"sqlite:///{tmp_path}/rooms.db")
    about = [finding for finding in await findings() if finding.check in OF_A_SERVER]
    assert {finding.check for finding in about} >= {"host", "store", "keys"}
    assert all(finding.found.startswith("settings of serve here: ") for finding in about)
