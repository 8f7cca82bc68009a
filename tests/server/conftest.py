"""What is not about one front runs on both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from synap_realtime.server import create_app

from .fronts import FRONTS, Front


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> Front:
    return FRONTS[request.param]


@pytest.fixture
async def rooms(front: Front) -> AsyncIterator[str]:
    """The address of a room server with an empty memory store."""
    async with front(create_app()) as url:
        yield url
