"""The pytest plugin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .recorder import Realtime


@pytest.fixture
def realtime() -> Iterator[Realtime]:
    """What this process broadcasts, recorded. See :class:`synap_realtime.testing.Realtime`."""
    from .recorder import record

    with record() as realtime:
        yield realtime
