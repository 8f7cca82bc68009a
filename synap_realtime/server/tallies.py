"""Histograms for up to 100,000 observations a second.

Those of prometheus-client take locks for each observation, which a single-threaded server does not
need.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class Histogram:
    """Counts of observations by their upper bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        total, buckets = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self._sum)


class HistogramVec(Collector):
    """A histogram for each value of a label."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], label: str | None = None):
        """
        Args:
            label: its name; None: there is one histogram without a label.
        """
        self._name = name
        self._text = text
        self._bounds = [float(bound) for bound in bounds]
        self._label = label
        self._histograms: dict[str, Histogram] = {}

    def labels(self, value: str = "") -> Histogram:
        if value not in self._histograms:
            self._histograms[value] = Histogram(self._bounds)
        return self._histograms[value]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        names = [] if self._label is None else [self._label]
        family = HistogramMetricFamily(self._name, self._text, labels=names)
        for value, histogram in self._histograms.items():
            histogram.add_to(family, [] if self._label is None else [value])
        yield family
