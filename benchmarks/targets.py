"""What the measurements are to reach, and which of them do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .rounds import Result
from .senders import RAW


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for one measurement of this repository's server.

    Attributes:
        result: the measurement's name.
        limit: the most that it may be, or the least with ``is_least``.
        over: what it is divided by: a server in the same rounds, or another measurement; None:
            nothing.
    """

    result: str
    limit: float
    over: str | None = None
    is_least: bool = False

    def measured(self, results: Mapping[str, Result]) -> float | None:
        """Return the median of the figure, or None if it was not measured."""
        mine = results.get(self.result)
        if mine is None or "ours" not in mine.stats:
            return None
        if self.over is None:
            return mine.stats["ours"].median
        if self.over in results:
            base = results[self.over].stats.get("ours")
            return mine.stats["ours"].median / base.median if base else None
        ratio = mine.ratio("ours", self.over)
        return None if ratio is None else ratio.median

    def is_missed(self, value: float) -> bool:
        return value < self.limit if self.is_least else value > self.limit


_CENTRIFUGO: Mapping[str, float] = {
    "publish": 0.75,
    "both": 0.75,
    **{f"raw-{client}-{state}": 0.75 for client in RAW for state in ("warm", "cold")},
    "batch": 0.6,
    "connect-HS256": 0.5,
    "connect-ES256": 1.0,
    "connect-RS256": 1.0,
    "restart": 0.9,
    "latency-p50": 0.75,
    "latency-p99": 1.0,
}

TARGETS: Sequence[Target] = (
    *(Target(name, limit, "centrifugo") for name, limit in _CENTRIFUGO.items()),
    Target("batch", 1.0, "ws"),
    Target("replay", 6.0),
    Target("memory", 3.5),
    # Not worse than before.
    Target("fanout", 0.9, "limit"),
    Target("sqlite", 20_000, is_least=True),
    Target("sdk-sequential", 1.2),
    Target("sdk-concurrent", 0.2),
    Target("growth-fanout-10000", 2.0, "growth-fanout-1000"),
    Target("growth-publish-10000", 1.2, "growth-publish-1000"),
    Target("growth-batch-10000", 1.2, "growth-batch-1000"),
)
