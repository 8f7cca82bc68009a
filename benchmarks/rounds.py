"""Paired rounds: the lower bound and a server alternate, so that noise affects both equally."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from . import machine
from .load import Load, LoadError, Report
from .servers import Limit, MissingError, Running, Server, running

SETTLE_S = 0.2
"""Seconds after clients have connected: some servers subscribe them only after the 101."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run.

    Attributes:
        kinds: the servers, without the lower bound.
        rounds: per measurement.
        scale: factor for connections, rooms and publishes; 1 is the full size.
    """

    kinds: Sequence[Server]
    rounds: int = 5
    scale: float = 1.0

    def scaled(self, count: int, least: int = 10) -> int:
        return max(least, round(count * self.scale))


@dataclass(frozen=True, slots=True)
class Stat:
    """The values of several rounds: median, minimum and maximum."""

    median: float
    least: float
    most: float
    values: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        return cls(median(values), min(values), max(values), tuple(values))

    def over(self, other: Stat) -> Stat:
        """Return the ratio of each pair of rounds."""
        pairs = zip(self.values, other.values, strict=True)
        return Stat.of([mine / base for mine, base in pairs if base > 0] or [0.0])


@dataclass(slots=True)
class Row:
    """One server's row in a table.

    Attributes:
        stats: by the measurement's name.
        ratios: the same, divided by the lower bound's of the same pair of rounds.
        note: why there are none.
    """

    server: str
    stats: dict[str, Stat] = field(default_factory=dict)
    ratios: dict[str, Stat] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The measurements of a scenario.

    Attributes:
        columns: the measurements, as ``name: unit``.
        compared: those that are also shown as ratios.
        base: what the ratios are to.
    """

    scenario: str
    title: str
    columns: Mapping[str, str]
    compared: Sequence[str]
    rows: Sequence[Row]
    remark: str = ""
    base: str = "the lower bound"


@dataclass(slots=True)
class Session:
    """A running server, and its load."""

    server: Running
    load: Load

    @property
    def kind(self) -> Server:
        return self.server.kind

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def publish_port(self) -> int:
        return self.kind.publish_port(self.port)

    @contextlib.contextmanager
    def used(self) -> Iterator[Callable[[], float]]:
        """Return the server's CPU time in us during the block."""
        end = 0.0
        begin = machine.cpu_s(self.server.pid)
        yield lambda: (end - begin) * 1e6
        end = machine.cpu_s(self.server.pid)


Measure = Callable[[Session], Mapping[str, float]]

S = TypeVar("S")


def shares(report: Report, server_us: float) -> dict[str, float]:
    """Return how busy both sides were: a load generator below 100 % is no bottleneck."""
    return {
        "server_busy": 100 * server_us / 1e6 / report.wall_s,
        "load_busy": 100 * report.cpu_s / report.wall_s,
    }


@contextlib.contextmanager
def session(kind: Server) -> Iterator[Session]:
    """Start a server and its load generator.

    Raises:
        MissingError: the server is not installed, or does not start.
        LoadError: from inside; it names the cause if the server has exited.
    """
    with running(kind) as server, Load(machine.cores().load) as load:
        try:
            yield Session(server, load)
        except LoadError as error:
            if (last_words := server.last_words()) is None:
                raise
            raise LoadError(f"the server has exited: {last_words} ({error})") from error


def compare(
    options: Options,
    prepare: Callable[[Session], None],
    measure: Measure,
    *,
    kinds: Sequence[Server] | None = None,
) -> list[Row]:
    """Measure each server in turn with the lower bound, whose row comes first."""
    base = Row(Limit.title)
    rows = [base]
    limits: dict[str, list[float]] = {}
    for kind in options.kinds if kinds is None else kinds:
        row = Row(kind.title)
        rows.append(row)
        begun = time.monotonic()
        try:
            with session(Limit()) as limit, session(kind) as mine:
                for each in (limit, mine):
                    prepare(each)
                    measure(each)
                pairs = [pair(limit, mine, measure, n) for n in range(options.rounds)]
        except (LoadError, MissingError) as error:
            row.note = " ".join(str(error).split())
            print_progress(f"{kind.name}: {row.note}")
            continue
        for name in pairs[0][1]:
            stat = Stat.of([pair[1][name] for pair in pairs])
            row.stats[name] = stat
            row.ratios[name] = stat.over(Stat.of([pair[0][name] for pair in pairs]))
            limits.setdefault(name, []).extend(pair[0][name] for pair in pairs)
        print_progress(f"{kind.name}: {time.monotonic() - begun:.1f} s")
    if limits:
        base.stats = {name: Stat.of(values) for name, values in limits.items()}
        return rows
    return [alone(options, Limit(), prepare, measure), *rows[1:]]


def pair(
    limit: S, mine: S, measure: Callable[[S], Mapping[str, float]], number: int
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Run one round of both; they take turns at being first."""
    if number % 2:
        second = measure(mine)
        return measure(limit), second
    return measure(limit), measure(mine)


def alone(
    options: Options, kind: Server, prepare: Callable[[Session], None], measure: Measure
) -> Row:
    """Measure one server without the lower bound; its first round is not counted."""
    row = Row(kind.title)
    try:
        with session(kind) as mine:
            prepare(mine)
            measure(mine)
            rounds = [measure(mine) for _ in range(options.rounds)]
    except (LoadError, MissingError) as error:
        row.note = " ".join(str(error).split())
    else:
        row.stats = {name: Stat.of([each[name] for each in rounds]) for name in rounds[0]}
    print_progress(f"{kind.name}: {row.note or 'done'}")
    return row


def ceiling(limit: Row, name: str) -> str:
    """Remark on the maximum rate of the load generator, and of the lower bound."""
    load, server = (1e6 / limit.stats[each].median for each in ("load_us", name))
    return (
        f"With the lower bound as its server, the load generator received {load:,.0f} a second on "
        f"its core, and the lower bound could send {server:,.0f} on its own."
    )


def print_progress(text: str) -> None:
    """Print progress to stderr."""
    print(f"    {text}", file=sys.stderr, flush=True)
