"""Scenario 7: the same costs with 10, 100, 1,000 and 10,000 connections and rooms."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from .. import machine
from ..load import LoadError
from ..rounds import Measure, Options, Row, Session, Stat, Table, pair, print_progress, session
from ..servers import Limit, MissingError, Server, Subscriber, one_room, own_rooms
from . import fanout, rooms
from .idle import REST_S

SIZES = (10, 100, 1000, 10_000)
SHARE = 0.4
"""Fraction of a round of the other scenarios."""

LEAST_FOR_MEMORY = 500
"""Minimum number of connections for a memory figure; fewer fit into memory already allocated."""

COLUMNS = {
    "delivery_us": "server CPU, µs a delivery (one room)",
    "publish_us": "µs a publish (a room each)",
    "batched_us": "µs a publish, 100 per request",
    "connect_us": "µs a connect",
    "connection_kb": "KB a connection",
}


def run(options: Options) -> list[Table]:
    """Measure each server and the lower bound step by step; a connect's cost is that of the new
    ones.
    """
    sizes = sorted({options.scaled(size) for size in SIZES})
    limits: list[Row] = []
    rows: list[Row] = []
    for kind in options.kinds[:1]:
        steps = [(Row(f"lower bound, {size:,}"), Row(f"{kind.title}, {size:,}")) for size in sizes]
        limits += [limit for limit, _ in steps]
        rows += [row for _, row in steps]
        try:
            _grow(options, kind, sizes, steps)
        except (LoadError, MissingError) as error:
            rows[-1].note = " ".join(str(error).split())
    title = "Scaling: subscribers of one room; rooms with one subscriber each"
    remark = (
        "Of the first server only. The cost of a connection is that of those added since the row "
        "above."
    )
    return [Table("growth", title, COLUMNS, list(COLUMNS)[:4], limits + rows, remark)]


def _grow(
    options: Options, kind: Server, sizes: Sequence[int], steps: Sequence[tuple[Row, Row]]
) -> None:
    less = replace(options, scale=options.scale * SHARE)
    for in_one_room in (True, False):
        with session(Limit()) as limit, session(kind) as mine:
            before = 0
            for size, (limit_row, row) in zip(sizes, steps, strict=True):
                subscribers = (one_room if in_one_room else own_rooms)(size)[before:]
                costs = [_connect(each, subscribers) for each in (limit, mine)]
                before = size
                ways: dict[str, tuple[str, Measure]]
                if in_one_room:
                    ways = {"delivery_us": ("delivery_us", fanout.measure(size, less))}
                else:
                    for name in costs[0]:
                        _add(limit_row, row, name, [(costs[0][name], costs[1][name])])
                    ways = {
                        "publish_us": ("publish_us", rooms.measure(size, less)),
                        "batched_us": ("publish_us", rooms.measure_batches(size, less)),
                    }
                for name, (of, measure) in ways.items():
                    measure(limit)
                    measure(mine)
                    rounds = [pair(limit, mine, measure, n) for n in range(options.rounds)]
                    pairs = [(a[of], b[of]) for a, b in rounds]
                    _add(limit_row, row, name, pairs)
                print_progress(f"scaling, {'one room' if in_one_room else 'rooms'}, {size:,}")


def _connect(mine: Session, subscribers: Sequence[Subscriber]) -> dict[str, float]:
    clients = [mine.kind.client(one) for one in subscribers]
    before = machine.max_memory_bytes(mine.server.pid)
    with mine.used() as used_us:
        mine.load.dial(mine.port, clients, live=mine.kind.live)
        time.sleep(REST_S)
    costs = {"connect_us": used_us() / len(clients)}
    if len(clients) >= LEAST_FOR_MEMORY:
        grown = machine.max_memory_bytes(mine.server.pid) - before
        costs["connection_kb"] = grown / 1024 / len(clients)
    return costs


def _add(limit_row: Row, row: Row, name: str, pairs: Sequence[tuple[float, float]]) -> None:
    limit_row.stats[name] = Stat.of([base for base, _ in pairs])
    row.stats[name] = Stat.of([cost for _, cost in pairs])
    row.ratios[name] = row.stats[name].over(limit_row.stats[name])
