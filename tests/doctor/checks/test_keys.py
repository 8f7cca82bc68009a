"""Findings about the keys, which never contain a key."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.support.credentials import API_KEY, SECRET
from tests.support.keys import DOCUMENT
from tests.support.timeouts import TIMEOUT_S

from ..conftest import WRONG_KEY, WRONG_SECRET, answering, diagnosis


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(f'token_secrets = ["{SECRET}"]\n[api_keys]\njobs = "{API_KEY}"\n')
    file.chmod(0o600)
    return file


async def test_the_applications_own_fit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_TOKEN_SECRET", SECRET)
    monkeypatch.setenv("REALTIME_API_KEY", API_KEY)
    found = await diagnosis(keys_file=file)
    assert found["keys"].found.endswith(": 1 token secret, 1 API key, 0 JWKS addresses")
    assert {found[check].level for check in ("key file", "token secret", "API key")} == {"ok"}
    assert "'jobs'" in found["API key"].found


async def test_the_applications_own_do_not_fit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_TOKEN_SECRET", WRONG_SECRET)
    monkeypatch.setenv("REALTIME_API_KEY", WRONG_KEY)
    found = await diagnosis(keys_file=file)
    assert {found[check].level for check in ("token secret", "API key")} == {"fail"}


async def test_a_key_that_may_not_broadcast(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(f'[api_keys]\nwatch = {{ key = "{API_KEY}", scope = "metrics" }}\n')
    monkeypatch.setenv("REALTIME_API_KEY", API_KEY)
    found = (await diagnosis(keys_file=file))["API key"]
    assert (found.level, "may not broadcast" in found.found) == ("fail", True)


async def test_a_file_that_others_may_read(file: Path) -> None:
    file.chmod(0o644)
    found = (await diagnosis(keys_file=file))["key file"]
    assert (found.level, found.advice) == ("warn", f"chmod 600 {file}")


@pytest.mark.parametrize(
    "text", ["token_secrets = [", f'secrets = ["{SECRET}"]', 'token_secrets = ["short"]', None]
)
async def test_a_file_that_cannot_be_read(file: Path, text: str | None) -> None:
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    assert (await diagnosis(keys_file=file))["keys"].level == "fail"


async def test_unresponsive_file_does_not_delay_other_checks(tmp_path: Path) -> None:
    pipe = tmp_path / "keys.toml"
    os.mkfifo(pipe)
    async with asyncio.timeout(TIMEOUT_S):
        found = await diagnosis(keys_file=pipe)
    assert (found["keys"].level, "store" in found) == ("fail", True)


@pytest.mark.parametrize(
    ("status", "body", "level", "said"),
    [
        (200, json.dumps(DOCUMENT), "ok", "3 keys"),
        (200, '{"keys": []}', "fail", "has no key for"),
        (200, "<html>", "fail", "not a JWK set"),
        (404, "", "fail", "answered 404"),
    ],
)
async def test_an_identity_providers_keys(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str, level: str, said: str
) -> None:
    async with answering(lambda _: (status, {}, body)) as url:
        monkeypatch.setenv("SYNAP_REALTIME_JWKS_URLS", url)
        found = (await diagnosis())["JWKS"]
    assert (found.level, said in found.found) == (level, True), found


async def test_reports_an_unreachable_identity_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_JWKS_URLS", "http://127.0.0.1:9/jwks")
    assert (await diagnosis())["JWKS"].level == "fail"
