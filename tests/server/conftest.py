"""Fixtures that run a test on both fronts, or on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from synap_realtime.server import create_app
from synap_realtime.server.auth import limits
from synap_realtime.server.serve import running_server
from tests.support.servers import FRONTS, Front
from tests.support.timeouts import TIMEOUT_S

Run = Callable[[Coroutine[Any, Any, None]], None]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):  # not on Windows, and the server works without it
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Run:
    """Run a test on one of the loops, for at most 20 s; nothing may be in the log."""

    def run(test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(test, TIMEOUT_S))
        assert not caplog.records

    return run


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

    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=clock))


@pytest.fixture
async def own() -> AsyncIterator[str]:
    """The address of a room server on our own front."""
    async with running_server(create_app()) as url:
        yield url


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test during which the server logs an error or a traceback."""
    yield
    wrong = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR or r.exc_info]
    assert not wrong, wrong
