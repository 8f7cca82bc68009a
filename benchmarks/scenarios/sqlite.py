"""The SQLite store: acknowledged notifications a second, each batch committed to disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ..ours import Ours
from ..rounds import Measure, Options, Part, Result, Session, Stat, busy, measure
from ..servers import ROOT, own_rooms
from .publish import BATCH, PUBLISHERS, ROOMS

NOTIFICATIONS = 20_000
"""Notifications per round."""

FLUSHES = 50


def run(options: Options) -> list[Result]:
    rooms = options.scaled(ROOMS, BATCH)
    rows = {
        "sqlite": f"SQLite store, batches of {BATCH}: acknowledged notifications a second",
        "sqlite-publish": "the same, µs a notification",
    }
    disk = Result("disk", "the same disk, alone: flushes (fdatasync) of 25 KB a second")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / ".venv") as folder:
        kinds = options.of(Ours(f"sqlite:///{folder}/rooms.db"))
        parts = [Part(rows, _measure(rooms, options))]
        results = measure(options, kinds, lambda _: None, parts)
        disk.stats["ours"] = _flushes(Path(folder), options)
    return [*results, disk]


def _measure(rooms: int, options: Options) -> Measure:
    names = [one.room for one in own_rooms(rooms)]
    batches = [names[start : start + BATCH] for start in range(0, rooms, BATCH)]
    count = options.scaled(NOTIFICATIONS, BATCH) // BATCH

    def round_of(session: Session) -> Mapping[str, float]:
        publishes = [session.kind.publish_many(batch, 0) for batch in batches]
        with session.used() as used_us:
            report = session.load.publish(
                session.publish_port, publishes, count, mode="closed", publishers=PUBLISHERS
            )
        return {
            "sqlite": count * BATCH / report.wall_s,
            "sqlite-publish": used_us() / (count * BATCH),
            **busy(report),
        }

    return round_of


def _flushes(folder: Path, options: Options) -> Stat:
    data = os.urandom(25_000)
    rounds = []
    with (folder / "flushed").open("wb", buffering=0) as file:
        for _ in range(options.rounds):
            begun = time.perf_counter()
            for _ in range(FLUSHES):
                file.write(data)
                os.fdatasync(file.fileno())
            rounds.append(FLUSHES / (time.perf_counter() - begun))
    return Stat.of(rounds)
