"""The pytest plugin: the fixture ``realtime``.

pytest imports it in every test run of an environment where this package is installed. It therefore
imports nothing but pytest until the fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .recorder import RealtimeRecorder


@pytest.fixture
def realtime() -> Iterator[RealtimeRecorder]:
    """Record what this process broadcasts. See :class:`synap_realtime.testing.RealtimeRecorder`."""
    from .recorder import record

    with record() as realtime:
        yield realtime


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test that uses ``realtime`` if no plugin for async tests does.

    Such a plugin runs first or passes a plain function. Without one, pytest would fail the test
    with "async def functions are not natively supported".

    Returns:
        True if the test was run; None if it is left to other plugins.
    """
    if "realtime" not in pyfuncitem.fixturenames:
        return None
    import asyncio
    import inspect

    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True
