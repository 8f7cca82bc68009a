"""What the tests share: a real room server on a free port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from synap_realtime.server import create_app
from synap_realtime.server.serve import running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=5, help="deaths of the server in tests/faults")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own environment changes no test."""
    for name in ("REALTIME_URL", "REALTIME_API_KEY", "INNGEST_DEV", "INNGEST_EVENT_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def rooms() -> AsyncIterator[str]:
    """The address of a room server with an empty memory store."""
    async with running(create_app()) as url:
        yield url
