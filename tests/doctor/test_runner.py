"""A check that raises or hangs does not hide the other findings."""

from __future__ import annotations

import asyncio

import pytest

from synap_realtime.doctor import configuration, runner
from synap_realtime.doctor.context import CheckContext
from synap_realtime.doctor.finding import Finding, Report, redact

from .conftest import diagnosis

OTHERS = {"store", "health", "WebSocket", "clock"}


async def test_check_that_raises_is_a_finding(rooms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(subject: CheckContext, say: Report) -> None:
        say(Finding("ok", "first", "found before"))
        raise ZeroDivisionError

    monkeypatch.setattr(configuration, "check", check)
    found = await diagnosis(rooms, store="memory://")
    assert found["first"].level == "ok"
    assert (found["configuration"].level, found["clock"].level) == ("fail", "ok")
    assert found.keys() >= OTHERS


async def test_check_that_hangs_is_a_finding(rooms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(subject: CheckContext, say: Report) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(configuration, "check", check)
    monkeypatch.setattr(runner, "LIMIT_S", 3.0)
    found = await diagnosis(rooms, store="memory://")
    assert found["configuration"].level == "fail"
    assert found.keys() >= OTHERS


def test_no_secret_is_shown_that_another_program_echoes() -> None:
    original = Finding("fail", "x", "got hunter22-long and hunter22", "see http://u:pw@h/")
    shown = redact(original, {"hunter22", "hunter22-long", "x", ""})
    assert str(shown) == "fail  x              got … and …; see http://…@h/"
