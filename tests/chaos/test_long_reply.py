"""A streamed reply to many subscribers who come and go: see the package ``long_reply``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.valkey import Valkey

from .long_reply.__main__ import Plan, run

MAX_GROWTH_KIB = 96 * 1024
"""Of the server. The whole reply, once for each subscriber, would be more."""


@pytest.mark.parametrize(
    ("store", "publisher", "kills"),
    [
        ("memory", "inprocess", 0),
        ("sqlite", "celery", 0),
        ("sqlite", "inprocess", 2),
        ("redis", "inprocess", 1),
    ],
)
async def test_every_subscriber_has_the_whole_text(
    store: str, publisher: str, kills: int, tmp_path: Path
) -> None:
    valkey = Valkey(tmp_path / "valkey") if store == "redis" else None
    try:
        found = await run(
            Plan(
                store=store if valkey is None else valkey.url,
                publisher="celery" if publisher == "celery" else "inprocess",
                pieces=4000,
                pieces_per_s=500,
                subscribers=30,
                kills=kills,
            ),
            tmp_path,
        )
    finally:
        if valkey is not None:
            valkey.kill()
    assert found.whole == 30
    assert found.peak_kib - found.resident_kib < MAX_GROWTH_KIB
