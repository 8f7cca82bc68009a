"""A check that raises or hangs does not hide the other findings."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from synap_realtime.doctor import checks, runner
from synap_realtime.doctor.checks import installation
from synap_realtime.doctor.context import CheckContext
from synap_realtime.doctor.finding import Finding, redact
from tests.support.waits import SetWaits

from .conftest import diagnosis


@pytest.mark.parametrize("name", runner.MODULES)
def test_each_check_of_a_module_runs(name: str) -> None:
    module = importlib.import_module(f"synap_realtime.doctor.checks.{name}")
    checks = [
        function
        for function in vars(module).values()
        if inspect.isasyncgenfunction(function)
        and function.__name__.startswith("check_")
        and function.__module__ == module.__name__
    ]
    assert checks == list(module.CHECKS) != []


def test_each_module_of_checks_runs() -> None:
    modules = {path.stem for path in Path(checks.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(runner.MODULES) == modules


OTHERS = {"store", "health", "WebSocket", "clock"}


async def test_check_that_raises_is_a_finding(rooms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check_odd(_: CheckContext) -> AsyncGenerator[Finding]:
        yield Finding("ok", "first", "found before")
        raise ZeroDivisionError

    monkeypatch.setattr(installation, "CHECKS", (check_odd,))
    found = await diagnosis(rooms, store="memory://")
    assert found["first"].level == "ok"
    assert (found["odd"].level, found["clock"].level) == ("fail", "ok")
    assert found.keys() >= OTHERS


async def test_check_that_hangs_is_a_finding(
    rooms: str, monkeypatch: pytest.MonkeyPatch, set_waits: SetWaits
) -> None:
    async def check_odd(_: CheckContext) -> AsyncGenerator[Finding]:
        await asyncio.Event().wait()
        yield Finding("ok", "never", "")

    monkeypatch.setattr(installation, "CHECKS", (check_odd,))
    set_waits(doctor_limit_s=3.0)
    found = await diagnosis(rooms, store="memory://")
    assert found["odd"].level == "fail"
    assert found.keys() >= OTHERS


def test_no_secret_is_shown_that_another_program_echoes() -> None:
    original = Finding("fail", "x", "got hunter22-long and hunter22", "see http://u:pw@h/")
    shown = redact(original, {"hunter22", "hunter22-long", "x", ""})
    assert str(shown) == "fail  x              got … and …; see http://…@h/"
