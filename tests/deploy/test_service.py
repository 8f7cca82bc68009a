"""``deploy/synap-realtime.service``: systemd takes it, and finds it closed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from synap_realtime.server.settings import ServerSettings, load_settings

from .conftest import DEPLOY

UNIT = DEPLOY / "synap-realtime.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="only a machine with systemd can check a unit"
)


def analyze(verb: str, *options: str, unit: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", verb, *options, str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@needs_systemd
def test_systemd_takes_it(tmp_path: Path) -> None:
    """With the program where it is here: systemd looks whether it is there."""
    text = UNIT.read_text()
    assert text.count("ExecStart=/opt/synap-realtime/bin/synap-realtime serve\n") == 1
    here = str(Path(sys.executable).with_name("synap-realtime"))
    (tmp_path / UNIT.name).write_text(text.replace("/opt/synap-realtime/bin/synap-realtime", here))
    done = analyze("verify", unit=tmp_path / UNIT.name)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_systemd_finds_it_closed() -> None:
    """Of 10.0, which is all that a service can do; 1.2 with systemd 252."""
    done = analyze("security", "--offline=true", "--threshold=20", unit=UNIT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_settings_are_the_servers() -> None:
    settings = dict(
        value.removeprefix("SYNAP_REALTIME_").split("=", 1) for value in values("Environment")
    )
    assert {name.lower() for name in settings} <= set(ServerSettings.model_fields)
    assert settings["HOST"] == "127.0.0.1"


def test_it_may_have_the_files_and_the_time_that_a_server_needs() -> None:
    defaults = load_settings()
    (files,), (stop_s,) = values("LimitNOFILE"), values("TimeoutStopSec")
    assert int(files) > defaults.max_connections + defaults.max_half_open + 100
    assert float(stop_s.removesuffix("s")) >= 2 * defaults.drain_s + 15


def values(key: str) -> list[str]:
    """Of a key that may stand there more than once."""
    lines = (line.partition("=") for line in UNIT.read_text().splitlines())
    return [value for name, _, value in lines if name == key]
