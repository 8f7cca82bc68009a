"""Where the release's facts are: the folder, the version, the date of the source."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent

CHART = ROOT / "deploy" / "helm" / "synap-realtime"

_UNDATED = 315_532_800  # 1980, the earliest date that a zip file can have


class ReleaseError(Exception):
    """Something that keeps a release from being built, with the fix."""


def version() -> str:
    """Return the version of the package, which has the one place to change it."""
    text = (ROOT / "synap_realtime" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ReleaseError("synap_realtime/__init__.py: __version__ is missing")
    return found[1]


def other_versions() -> dict[str, str]:
    """Return the versions that other files repeat, because their formats require it."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    worker = (ROOT / "worker" / "src" / "version.ts").read_text()
    found = re.search(r'"([^"]+)"', worker)
    package = json.loads((ROOT / "browser" / "package.json").read_text())
    return {
        "browser/package.json": str(package["version"]),
        "worker/src/version.ts": found[1] if found else "",
        "deploy/helm/synap-realtime/Chart.yaml (version)": str(chart["version"]),
        "deploy/helm/synap-realtime/Chart.yaml (appVersion)": str(chart["appVersion"]),
    }


@functools.cache
def source_date() -> int:
    """Return the time of the last commit, in seconds since 1970: the date of all built files."""
    done = subprocess.run(
        ["git", "-C", ROOT, "log", "-1", "--format=%ct"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else _UNDATED
