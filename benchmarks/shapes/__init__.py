"""What is measured: a module a shape, each with ``run(options)`` that gives tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..rounds import Options, Table
from . import abuse, fanout, growth, idle, latency, resume, rooms, sdk, sqlite

SHAPES: Mapping[str, Callable[[Options], Sequence[Table]]] = {
    "fanout": fanout.run,
    "rooms": rooms.run,
    "idle": idle.run,
    "latency": latency.run,
    "resume": resume.run,
    "sdk": sdk.run,
    "sqlite": sqlite.run,
    "growth": growth.run,
    "abuse": abuse.run,
}
