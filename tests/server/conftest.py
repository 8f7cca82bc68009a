"""Fixtures that run a test on both fronts."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import throttled.utils

from synap_realtime.server import create_app
from synap_realtime.server.auth import limits
from tests.support.servers import FRONTS, Front


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> Front:
    return FRONTS[request.param]


@pytest.fixture
async def rooms(front: Front) -> AsyncIterator[str]:
    """The address of a room server with an empty memory store."""
    async with front(create_app()) as url:
        yield url


@pytest.fixture
def slow_rate_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock of all rates advance by a microsecond each time that it is read.

    So a quota does not refill while a test spends it, and it is spent after the same number of
    requests on a machine of any speed. (On a clock that stands still, GCRA meets rounding errors.)
    """
    ticks = itertools.count()

    def clock() -> float:
        return 1000 + next(ticks) * 1e-6

    monkeypatch.setattr(throttled.utils, "now_mono_f", clock)
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=clock))
