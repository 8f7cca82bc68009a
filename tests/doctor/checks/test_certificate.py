"""The certificate of a server that speaks TLS itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.certificates import certify

from ..conftest import diagnosis


async def test_no_certificate_gives_no_finding() -> None:
    assert not {"TLS files", "TLS key"} & set(await diagnosis())


@pytest.mark.parametrize(("days", "level"), [(90, "ok"), (13, "warn"), (-1, "fail")])
async def test_when_it_ends(days: float, level: str, tmp_path: Path) -> None:
    certified = certify(tmp_path, days)
    found = await diagnosis(tls_cert=certified.chain, tls_key=certified.key)
    assert (found["TLS files"].level, found["TLS key"].level) == (level, "ok")


async def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certified = certify(tmp_path)
    found = (await diagnosis(tls_cert=certified.chain))["TLS files"]
    assert (found.level, "needs --tls-key" in found.found) == ("fail", True)
    monkeypatch.setenv("SYNAP_REALTIME_TLS_CERT", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SYNAP_REALTIME_TLS_KEY", str(certified.key))
    found = (await diagnosis())["TLS files"]
    assert (found.level, "No such file" in found.found) == ("fail", True)


async def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    certified = certify(tmp_path)
    certified.key.chmod(0o644)
    found = (await diagnosis(tls_cert=certified.chain, tls_key=certified.key))["TLS key"]
    assert (found.level, "chmod 600" in found.advice) == ("warn", True)
