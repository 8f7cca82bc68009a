"""Explore interleavings: see the package."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support.program import Program
from tests.support.waits import wait_setter

from .model import RETENTION
from .play import Player, Step, steps

LIMITS = {
    "SYNAP_REALTIME_RETENTION_COUNT": str(RETENTION),
    "SYNAP_REALTIME_NEW_CONNECTIONS_PER_S": "0",
    "SYNAP_REALTIME_PUBLISH_BYTES_PER_S": "0",
    "SYNAP_REALTIME_READ_BYTES_PER_S": "0",
    "SYNAP_REALTIME_REQUESTS_PER_S": "0",
}


def explore(kind: str, folder: Path, examples: int, first_seed: int | None = None) -> Player:
    """Play so many interleavings.

    Args:
        kind: ``memory``, ``sqlite``, or the URL of a store.

    Raises:
        AssertionError: a client differs from the model; Hypothesis prints the steps.
    """
    store = {"memory": "memory://", "sqlite": f"sqlite:///{folder / 'rooms.db'}"}.get(kind, kind)
    server = Program(store, **LIMITS)
    player = Player(server)
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        wait_setter(patch)(initial_delay_s=0.05, max_delay_s=0.2)
        runner.run(server.start())

        @seed(first_seed or 0)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=first_seed is None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(steps(has_kills=kind != "memory"))
        def check(steps: list[Step]) -> None:
            runner.run(player.play(steps))

        try:
            check()
        finally:
            runner.run(server.kill())
    return player


def main() -> None:
    parser = argparse.ArgumentParser(description="Explore interleavings of writes and faults.")
    parser.add_argument("--store", default="sqlite", help="memory, sqlite, or a store's URL")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        player = explore(given.store, Path(folder), given.examples, given.seed)
    print(
        f"{player.played} interleavings of {player.steps:,} steps, {player.kills} kills, "
        f"{player.connections:,} connections: every client had the text of the model"
    )


if __name__ == "__main__":
    main()
