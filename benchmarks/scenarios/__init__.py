"""The scenarios: one module each, with ``run(options)`` that returns tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..rounds import Options, Table
from . import abuse, fanout, idle, latency, nodes, resume, rooms, scaling, sdk, sqlite

SCENARIOS: Mapping[str, Callable[[Options], Sequence[Table]]] = {
    "fanout": fanout.run,
    "rooms": rooms.run,
    "idle": idle.run,
    "latency": latency.run,
    "resume": resume.run,
    "sdk": sdk.run,
    "sqlite": sqlite.run,
    "growth": scaling.run,
    "abuse": abuse.run,
    "nodes": nodes.run,
}
