"""Certificate files: valid, invalid and reloaded."""

from __future__ import annotations

import shutil
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.server.protocols.tls import ReloadingCertificate, open_certificate
from tests.support.certificates import certify


def test_both_or_none(tmp_path: Path) -> None:
    certified = certify(tmp_path)
    assert open_certificate(None, None) is None
    with pytest.raises(ConfigurationError, match=r"--tls-cert \(SYNAP_\w+\) needs --tls-key"):
        open_certificate(certified.chain, None)
    with pytest.raises(ConfigurationError, match=r"--tls-key \(SYNAP_\w+\) needs --tls-cert"):
        open_certificate(None, certified.key)
    certificate = open_certificate(certified.chain, certified.key)
    assert certificate is not None
    assert 0.9 < (certificate.not_after - datetime.now(UTC)).total_seconds() / 86400 <= 1


def test_problems_are_named(tmp_path: Path) -> None:
    certified = certify(tmp_path)
    chain, key = certified.chain, certified.key
    (tmp_path / "other").mkdir()
    other = certify(tmp_path / "other", password=b"hunter22")
    empty = tmp_path / "empty.pem"
    empty.touch()
    missing = tmp_path / "missing.pem"
    cut = tmp_path / "cut.pem"
    cut.write_bytes(key.read_bytes()[:60])
    for one, two, said in (
        (missing, key, "--tls-cert .*missing.pem: No such file"),
        (chain, missing, "--tls-key .*missing.pem: No such file"),
        (tmp_path, key, "--tls-cert .*: Is a directory"),
        (empty, key, "--tls-cert .*expected certificates"),
        (key, chain, "--tls-cert .*expected certificates"),
        (chain, chain, "--tls-key .*expected a private key"),
        (chain, cut, "--tls-key .* cannot be used"),
        (other.chain, key, "--tls-key .*is not the key of the first certificate"),
        (other.chain, other.key, "--tls-key .* is encrypted"),
    ):
        with pytest.raises(ConfigurationError, match=said) as raised:
            ReloadingCertificate(one, two)
        assert "PRIVATE" not in str(raised.value)


def test_reloads_changed_files_and_logs_broken_ones_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    certified = certify(tmp_path)
    certificate = ReloadingCertificate(certified.chain, certified.key, clock=lambda: now)
    first = certificate.context()

    def later() -> ssl.SSLContext:
        nonlocal now
        now += 1
        return certificate.context()

    assert later() is first
    certify(tmp_path)
    assert certificate.context() is first
    second = later()
    assert second is not first
    shutil.move(certified.key, tmp_path / "kept.pem")
    assert {later(), later(), later()} == {second}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    shutil.move(tmp_path / "kept.pem", certified.key)
    assert later() is not second
    assert len(caplog.records) == 1
