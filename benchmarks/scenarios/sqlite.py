"""The SQLite store: acknowledged notifications a second, each batch committed to disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ..rounds import Measure, Options, Row, Session, Stat, Table, alone
from ..servers import ROOT, Ours, own_rooms
from .rooms import BATCH, PUBLISHERS, ROOMS

NOTIFICATIONS = 20_000
"""Notifications per round."""

COLUMNS = {
    "acknowledged_per_s": "acknowledged notifications a second",
    "publish_us": "server CPU, µs a publish",
    "load_busy": "load busy, %",
}
DISK = {"flushes_per_s": "flushes (fdatasync) of 25 KB a second"}


def run(options: Options) -> list[Table]:
    rooms = options.scaled(ROOMS, BATCH)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / ".venv") as folder:
        kind = Ours(f"sqlite:///{folder}/rooms.db")
        row = alone(options, kind, lambda _: None, _measure(rooms, options))
        row.server = "synap-realtime, sqlite store"
        disk = Row("the disk", {"flushes_per_s": _flushes(Path(folder), options)})
    what = f"{BATCH} per request, {PUBLISHERS} publishers, {rooms:,} rooms without subscribers"
    return [
        Table("sqlite", f"SQLite store on disk: {what}", COLUMNS, [], [row]),
        Table("disk", "The same disk, alone", DISK, [], [disk]),
    ]


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
            "acknowledged_per_s": count * BATCH / report.wall_s,
            "publish_us": used_us() / (count * BATCH),
            "load_busy": 100 * report.cpu_s / report.wall_s,
        }

    return round_of


def _flushes(folder: Path, options: Options) -> Stat:
    data = os.urandom(25_000)
    rounds = []
    with (folder / "flushed").open("wb", buffering=0) as file:
        for _ in range(options.rounds):
            begun = time.perf_counter()
            for _ in range(50):
                file.write(data)
                os.fdatasync(file.fileno())
            rounds.append(50 / (time.perf_counter() - begun))
    return Stat.of(rounds)
