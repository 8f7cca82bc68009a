"""The artifacts, built once for these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.build import build


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``scripts/build``."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


@pytest.fixture(scope="session")
def wheel(artifacts: Path) -> Path:
    (found,) = artifacts.glob("*.whl")
    return found
