"""The Start page and the demo on a bare Debian."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.tutorial import ROOT, Reader
from tests.support.timeouts import TIMEOUT_S

from .conftest import CHROOT, PACKAGES

pytestmark = pytest.mark.timeout(60 * TIMEOUT_S)

START = (ROOT / "docs/README.md").read_text()
ENVIRONMENT = ". .venv/bin/activate; export REALTIME_URL=http://127.0.0.1:8787"
WHEEL = "synap_realtime-*.whl"


@pytest.fixture(params=["bookworm", "trixie"])
def root(request: pytest.FixtureRequest, debian: Callable[[str], Path]) -> Path:
    return debian(request.param)


@pytest.fixture
def home(root: Path, dist: Path) -> Path:
    """A new folder of a user, with ``dist/``."""
    home = root / "home" / "reader"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(dist, home / "dist")
    return home


def test_the_page_names_what_debian_lacks() -> None:
    assert f"`sudo apt install {' '.join(PACKAGES)}`" in START


def test_the_start_page_works_word_by_word(root: Path, home: Path) -> None:
    page = START.replace("$ . .venv/bin/activate", f"$ {ENVIRONMENT}")
    reader = Reader(home, page, (8787, 8000), root)
    try:
        reader.follow()
    finally:
        reader.stop()


def test_the_demo_runs(root: Path, home: Path) -> None:
    (wheel,) = (home / "dist").glob(WHEEL)
    script = f"""
        cd /home/reader
        python3 -m venv .venv
        .venv/bin/pip install -q 'dist/{wheel.name}[demo]'
        .venv/bin/synap-realtime demo --once --port 0
    """
    done = subprocess.run(
        [CHROOT, root, "sh", "-ec", script],
        env={"PATH": "/usr/bin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", **pip_settings()},
        capture_output=True, text=True, timeout=20 * TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 jobs ended as expected." in done.stdout


def pip_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
