"""``deploy/synap-realtime.service``: systemd accepts it and rates it as hardened."""

from __future__ import annotations

import grp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from synap_realtime.server.config import ServerSettings, load_settings
from tests.support.timeouts import TIMEOUT_S

from .conftest import DEPLOY

UNIT = DEPLOY / "synap-realtime.service"
TLS = DEPLOY / "synap-realtime-tls.conf"
HOOK = DEPLOY / "letsencrypt-hook.sh"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="only a machine with systemd can check a unit"
)


def analyze(verb: str, *options: str, unit: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", verb, *options, str(unit)],
        capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False,
    )  # fmt: skip


@needs_systemd
@pytest.mark.parametrize("tls", [False, True], ids=["alone", "with TLS"])
def test_systemd_accepts_the_unit(tmp_path: Path, tls: bool) -> None:
    """With the program where it is here: systemd looks whether it is there."""
    text = UNIT.read_text()
    if tls:
        (tmp_path / f"{UNIT.name}.d").mkdir()
        (tmp_path / f"{UNIT.name}.d" / "tls.conf").write_text(TLS.read_text())
    assert text.count("ExecStart=/opt/synap-realtime/bin/synap-realtime serve\n") == 1
    here = str(Path(sys.executable).with_name("synap-realtime"))
    (tmp_path / UNIT.name).write_text(text.replace("/opt/synap-realtime/bin/synap-realtime", here))
    done = analyze("verify", unit=tmp_path / UNIT.name)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_systemd_rates_the_unit_as_hardened() -> None:
    """Of 10.0, which is all that a service can do; 1.2 with systemd 252."""
    done = analyze("security", "--offline=true", "--threshold=20", unit=UNIT)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_systemd
def test_systemd_rates_the_tls_unit_as_hardened(tmp_path: Path) -> None:
    """What the drop-in opens is one capability and the host's users; 1.7 with systemd 252."""
    merged = tmp_path / UNIT.name
    changed = {line.partition("=")[0] for line in TLS.read_text().splitlines() if "=" in line}
    kept = [
        line
        for line in UNIT.read_text().splitlines()
        if line.partition("=")[0] not in changed - {"Environment"}
    ]
    (body,) = re.findall(r"\[Service\]\n(.*)", TLS.read_text(), re.DOTALL)
    merged.write_text("\n".join(kept).replace("[Service]", f"[Service]\n{body}", 1))
    done = analyze("security", "--offline=true", "--threshold=25", unit=merged)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tls_unit_may_bind_443_and_read_renewed_certificates(tmp_path: Path) -> None:
    settings = dict(
        value.removeprefix("SYNAP_REALTIME_").split("=", 1) for value in values("Environment", TLS)
    )
    assert {name.lower() for name in settings} <= set(ServerSettings.model_fields)
    assert settings["PORT"] == "443"
    assert values("AmbientCapabilities", TLS) == ["CAP_NET_BIND_SERVICE"]
    assert values("CapabilityBoundingSet", TLS) == ["CAP_NET_BIND_SERVICE"]
    assert values("PrivateUsers", TLS) == [
        "no"
    ]  # a capability of other users is none of the host's
    lineage, folder = tmp_path / "live/rooms.example.com", tmp_path / "etc"
    lineage.mkdir(parents=True)
    folder.mkdir()
    for name in ("fullchain.pem", "privkey.pem", "cert.pem"):
        (lineage / name).write_text(f"the new {name}")
        (lineage / name).chmod(0o600)

    def renew(domain: str) -> None:
        group = grp.getgrgid(os.getgid()).gr_name
        variables = {
            "PATH": os.environ["PATH"], "RENEWED_LINEAGE": str(lineage.with_name(domain)),
            "SYNAP_REALTIME_TLS_FOLDER": str(folder), "SYNAP_REALTIME_GROUP": group,
        }  # fmt: skip
        subprocess.run(["sh", str(HOOK)], env=variables, check=True, timeout=TIMEOUT_S)

    renew("another.example.com")
    assert list(folder.iterdir()) == []
    renew("rooms.example.com")
    assert {str(Path("/etc/synap-realtime") / each.name) for each in folder.iterdir()} == {
        settings["TLS_CERT"], settings["TLS_KEY"],
    }  # fmt: skip
    for each in folder.iterdir():
        assert each.read_text() == f"the new {each.name}"
        assert each.stat().st_mode & 0o777 == 0o640


def test_unit_sets_only_server_options() -> None:
    settings = dict(
        value.removeprefix("SYNAP_REALTIME_").split("=", 1) for value in values("Environment")
    )
    assert {name.lower() for name in settings} <= set(ServerSettings.model_fields)
    assert settings["HOST"] == "127.0.0.1"


def test_unit_allows_enough_descriptors_and_stop_time() -> None:
    defaults = load_settings()
    (files,), (stop_s,) = values("LimitNOFILE"), values("TimeoutStopSec")
    assert int(files) > defaults.max_connections + defaults.max_pending_connections + 100
    assert float(stop_s.removesuffix("s")) >= 2 * defaults.drain_timeout_s + 15


def values(key: str, unit: Path = UNIT) -> list[str]:
    """Of a key that may stand there more than once."""
    lines = (line.partition("=") for line in unit.read_text().splitlines())
    return [value for name, _, value in lines if name == key]
