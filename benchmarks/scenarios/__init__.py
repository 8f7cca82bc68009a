"""The scenarios: one module each, with ``run(options)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..rounds import Options, Result
from ..table import Table
from . import (
    abuse,
    connects,
    day,
    fanout,
    growth,
    latency,
    nodes,
    publish,
    raw,
    replay,
    reply,
    restart,
    sdk,
    sqlite,
    tls,
)

SCENARIOS: Mapping[str, Callable[[Options], Sequence[Result]]] = {
    "publish": publish.run,
    "raw": raw.run,
    "fanout": fanout.run,
    "connects": connects.run,
    "restart": restart.run,
    "replay": replay.run,
    "latency": latency.run,
    "reply": reply.run,
    "tls": tls.run,
    "day": day.run,
    "sqlite": sqlite.run,
    "sdk": sdk.run,
    "growth": growth.run,
}
"""Those of the one table in results.md."""

WITH_OWN_TABLES: Mapping[str, tuple[str, Callable[[Options], Sequence[Table]]]] = {
    "abuse": (abuse.METHOD, abuse.run),
    "nodes": (nodes.METHOD, nodes.run),
}
"""How they are measured, and the scenario. Only on request."""
