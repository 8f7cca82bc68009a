"""Interleaved rounds: servers take turns, so that noise affects all of them equally."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from . import machine
from .load import Load, LoadError, Report
from .senders import MissingError
from .servers import Running, Server, running

SETTLE_S = 0.2
"""Seconds after clients have connected: some servers subscribe them only after the 101."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run.

    Attributes:
        servers: the names of those that take part.
        rounds: per measurement.
        scale: factor for connections, rooms and publishes; 1 is the full size.
    """

    servers: Collection[str] = ()
    rounds: int = 5
    scale: float = 1.0

    def scaled(self, count: int, least: int = 10) -> int:
        return max(least, round(count * self.scale))

    def of(self, *kinds: Server) -> list[Server]:
        """Return those that take part."""
        return [kind for kind in kinds if kind.name in self.servers]


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
class Result:
    """What was measured of several servers in the same rounds.

    Attributes:
        name: short, for the targets; what: for the table, with its unit.
        stats: by the name of the server.
        notes: why there are none.
        load_busy: the share of its core that the load generator used for this repository's server.
    """

    name: str
    what: str
    stats: dict[str, Stat] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    load_busy: float | None = None

    def ratio(self, server: str, base: str) -> Stat | None:
        """Return the ratio of two servers, pair by pair."""
        if server not in self.stats or base not in self.stats:
            return None
        return self.stats[server].over(self.stats[base])


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

    def explain(self, error: LoadError) -> LoadError:
        """Return the error with the end of the server's log if the server has exited."""
        last_words = self.server.last_words()
        text = f"the server has exited: {last_words} ({error})" if last_words else str(error)
        return LoadError(text)

    @contextlib.contextmanager
    def used(self) -> Iterator[Callable[[], float]]:
        """Return the server's CPU time in us during the block."""
        end = 0.0
        begin = machine.cpu_s(self.server.pid)
        yield lambda: (end - begin) * 1e6
        end = machine.cpu_s(self.server.pid)


BUSY = "busy"
"""In the values of a round: the share of its core that the load generator used."""

Measure = Callable[[Session], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Part:
    """A measurement of a scenario.

    Attributes:
        rows: what :attr:`measure` returns, as ``name: what``.
        measure: runs a round.
        fits: whether a server can do it.
        rounds: the most that are needed.
    """

    rows: Mapping[str, str]
    measure: Measure
    fits: Callable[[Server], bool] = lambda _: True
    rounds: int = 1000


S = TypeVar("S")


def busy(report: Report) -> dict[str, float]:
    """Return how busy the load generator was: below 100 %, it was no bottleneck."""
    return {BUSY: 100 * report.cpu_s / report.wall_s}


@contextlib.contextmanager
def session(kind: Server) -> Iterator[Session]:
    """Start a server and its load generator.

    Raises:
        MissingError: the server is not installed, or does not start.
        LoadError: from inside; it names the cause if the server has exited.
    """
    with running(kind) as server, Load(machine.cores().load) as load:
        mine = Session(server, load)
        try:
            yield mine
        except LoadError as error:
            raise mine.explain(error) from error


class _Participant:
    """A server that takes its turns, and is started again if it fails.

    Raises:
        MissingError, LoadError: from the constructor, too.
    """

    def __init__(self, kind: Server, prepare: Callable[[Session], None]) -> None:
        self.kind = kind
        self._prepare = prepare
        self._stack = contextlib.ExitStack()
        self._has_failed = False
        self._start()

    def _start(self) -> None:
        try:
            self._session = self._stack.enter_context(session(self.kind))
            self._prepare(self._session)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def measure(self, measure: Measure) -> Mapping[str, float]:
        """Run a round; after its first failure, another one with new clients."""
        try:
            return measure(self._session)
        except LoadError as error:
            failure = self._session.explain(error)
            if self._has_failed:
                raise failure from error
            print_progress(f"{self.kind.name}, once more: {failure}")
            self._has_failed = True
            self.close()
            self._start()
            measure(self._session)
            return measure(self._session)


def measure(
    options: Options,
    kinds: Sequence[Server],
    prepare: Callable[[Session], None],
    parts: Sequence[Part],
) -> list[Result]:
    """Measure these servers in turn: in each round, another one is the first.

    A server that is not installed, or fails twice, is noted, and takes no further part.

    Args:
        prepare: connects the clients.
    """
    results = [[Result(*row) for row in part.rows.items()] for part in parts]
    participants: list[_Participant] = []
    try:
        for kind in kinds:
            try:
                participants.append(_Participant(kind, prepare))
            except (LoadError, MissingError) as error:
                _note([each for rows in results for each in rows], kind, error)
        for number, (part, rows) in enumerate(zip(parts, results, strict=True)):
            begun = time.monotonic()
            fitting = [each for each in participants if part.fits(each.kind)]
            rounds, errors = _take_turns(options, part, fitting)
            _add(rows, rounds)
            for failed, why in errors.items():
                _note([each for rest in results[number:] for each in rest], failed.kind, why)
                participants.remove(failed)
                failed.close()
            print_progress(f"{rows[0].name}: {time.monotonic() - begun:.1f} s")
    finally:
        for each in participants:
            each.close()
    return [each for rows in results for each in rows]


Rounds = Mapping[str, Sequence[Mapping[str, float]]]


def _take_turns(
    options: Options, part: Part, participants: Sequence[_Participant]
) -> tuple[Rounds, Mapping[_Participant, Exception]]:
    """Return the rounds by the name of the server, and who failed. The first round warms up."""
    rounds: dict[str, list[Mapping[str, float]]] = {each.kind.name: [] for each in participants}
    errors: dict[_Participant, Exception] = {}
    for number in range(-1, min(options.rounds, part.rounds)):
        first = number % max(1, len(participants))
        for each in (*participants[first:], *participants[:first]):
            if each in errors:
                continue
            try:
                values = each.measure(part.measure)
            except (LoadError, MissingError) as error:
                errors[each] = error
                del rounds[each.kind.name]
                continue
            if number >= 0:
                rounds[each.kind.name].append(values)
    return rounds, errors


def _add(rows: Sequence[Result], rounds: Rounds) -> None:
    for name, values in rounds.items():
        for row in rows:
            row.stats[name] = Stat.of([each[row.name] for each in values])
            if name == "ours" and BUSY in values[0]:
                row.load_busy = median(each[BUSY] for each in values)


def _note(rows: Sequence[Result], kind: Server, error: Exception) -> None:
    text = " ".join(str(error).split())
    print_progress(f"{kind.name}: {text}")
    for row in rows:
        row.notes[kind.name] = text


def pair(
    limit: S, mine: S, measure: Callable[[S], Mapping[str, float]], number: int
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Run one round of both; they take turns at being first."""
    if number % 2:
        second = measure(mine)
        return measure(limit), second
    return measure(limit), measure(mine)


def print_progress(text: str) -> None:
    """Print progress to stderr."""
    print(f"    {text}", file=sys.stderr, flush=True)
