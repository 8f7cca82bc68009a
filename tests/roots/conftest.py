"""Debian in a folder, made by debootstrap. Programs run in it by chroot, and share the network.

``TESTS_ROOTS=FOLDER`` keeps the roots for the next run. Otherwise they are removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from release.build import build
from tests.support.timeouts import TIMEOUT_S

PACKAGES = ("python3-venv", "curl")
"""What the Start page asks a user of Debian to install."""

CHROOT = "/usr/sbin/chroot"
"""Its folder is not on the ``PATH`` that the programs get."""

_MIRROR = "http://deb.debian.org/debian"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``scripts/build`` makes."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Return the root folder of a release of Debian with :data:`PACKAGES`."""
    if os.geteuid() != 0:
        pytest.skip("chroot and debootstrap need root")
    if (debootstrap := shutil.which("debootstrap")) is None:
        pytest.skip("debootstrap is not installed: apt install debootstrap")
    kept = os.environ.get("TESTS_ROOTS")
    made: dict[str, Path] = {}

    def _make(release: str) -> Path:
        if kept and (Path(kept) / release).exists():
            return Path(kept) / release
        if release not in made:
            root = Path(kept) / release if kept else tmp_path_factory.mktemp(release)
            include = ",".join((*PACKAGES, "ca-certificates"))
            command = [debootstrap, "--variant=minbase", f"--include={include}", release]
            done = subprocess.run(
                [*command, root, _MIRROR], env={**os.environ, "LC_ALL": "C"},
                capture_output=True, text=True, timeout=40 * TIMEOUT_S, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                shutil.rmtree(root, ignore_errors=True)
                reason = (done.stdout + done.stderr).strip().splitlines()[-1:]
                pytest.skip(f"debootstrap {release} failed: {reason}")
            root.chmod(0o755)  # pytest's folders are for their owner
            # This machine's network and authorities.
            for file in (_CERTIFICATES, Path("/etc/resolv.conf"), Path("/etc/hosts")):
                shutil.copy(file, root / file.relative_to("/"))
            made[release] = root
        return made[release]

    yield _make
    for root in () if kept else made.values():
        shutil.rmtree(root, ignore_errors=True)
