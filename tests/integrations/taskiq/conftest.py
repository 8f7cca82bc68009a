"""The room server of these tests, whose rooms keep every notification."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from synap_realtime.server.serve import running_server
from tests.support.servers import unfolded_app


@pytest.fixture
async def rooms() -> AsyncIterator[str]:
    """The address of a room server that folds nothing."""
    async with running_server(unfolded_app()) as url:
        yield url
