"""Write ``results.md``: one table, and what is missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .peers import KINDS
from .rounds import Result, Stat
from .table import grid, number
from .targets import TARGETS, Target

OURS, CENTRIFUGO, LIMIT = "ours", "centrifugo", "limit"
COMPARED = (CENTRIFUGO, LIMIT)

METHOD = """\
synap-realtime validates, deduplicates and logs, with publishers' keys, a token for each subscriber
and its default limits; it receives what its SDK sends, byte for byte, unless a row says otherwise.
Centrifugo has history, recovery, idempotent publishes and a token for each user, with its memory
engine. The other servers are small programs of `benchmarks/baselines/` with production settings,
which do not validate, deduplicate, authenticate or keep a log, except nchan, which keeps 100
messages a room; the lower bound is one of them, in C. µs are the CPU time (user and system) of the
server, which has one core. The load generator (C, epoll, one thread) has another; "load" is the
share of it that it used for synap-realtime: below 100 %, it was no bottleneck. Servers take turns
in each round. Values are medians of at most {rounds} rounds. Ratios are of synap-realtime to the
other server in the same round, with minimum and maximum in brackets."""


def one_table(results: Sequence[Result]) -> str:
    """Return the table: a row for each measurement, a column for each server."""
    others = [
        name
        for name in KINDS
        if name not in (OURS, *COMPARED) and any(name in each.stats for each in results)
    ]
    servers = (OURS, *COMPARED, *others)
    header = ["", KINDS[OURS].title]
    header += [f"times {KINDS[name].title}" for name in COMPARED]
    header += [KINDS[name].title for name in servers[1:]]
    rows = []
    for each in results:
        if not each.stats and not each.notes:
            continue  # of servers that take no part
        cells = [each.what, _median(each, OURS)]
        cells += [_spread(each.ratio(OURS, name)) for name in COMPARED]
        cells += [_median(each, name) for name in servers[1:]]
        cells.append("" if each.load_busy is None else f"{each.load_busy:.0f} %")
        rows.append(cells)
    return "\n".join([grid([*header, "load"], rows), *_notes(results)])


def what_is_missed(results: Sequence[Result], targets: Sequence[Target] = TARGETS) -> str:
    """Return a table of the targets that these measurements do not reach, and name the others."""
    by_name = {each.name: each for each in results}
    missed, reached, unknown = [], [], []
    for target in targets:
        if target.result not in by_name:
            continue  # of a scenario that was not run
        what = _what(target, by_name)
        value = target.measured(by_name)
        if value is None:
            unknown.append(what)
            continue
        cells = [what, _limit(target), number(value)]
        if target.is_missed(value):
            part = value / target.limit - 1
            missed.append([*cells, f"{abs(part) * 100:.0f} % too {'low' if part < 0 else 'high'}"])
        else:
            reached.append(f"{what}: {number(value)} ({_limit(target)})")
    lines = [grid(["", "target", "measured", "missed by"], missed) if missed else "Nothing."]
    if reached:
        lines += ["", "Reached: " + "; ".join(reached) + "."]
    if unknown:
        lines += ["", "Not measured: " + "; ".join(unknown) + "."]
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [asdict(each) for each in results]


def _median(result: Result, name: str) -> str:
    if name in result.stats:
        return number(result.stats[name].median)
    return "?" if name in result.notes else ""


def _spread(stat: Stat | None) -> str:
    if stat is None:
        return ""
    return f"**{stat.median:.2f}** ({stat.least:.2f} to {stat.most:.2f})"


def _notes(results: Sequence[Result]) -> list[str]:
    """Return why servers have no figures, each reason once."""
    reasons: dict[str, None] = {}
    for each in results:
        for name, text in each.notes.items():
            title = KINDS[name].title
            where = "" if "not installed" in text else f" ({each.what})"
            reasons.setdefault(f"{title}{where}: {text}")
    return ["", "?: not measured. " + " ".join(f"{each}." for each in reasons)] if reasons else []


def _limit(target: Target) -> str:
    return f"at {'least' if target.is_least else 'most'} {number(target.limit)}"


def _what(target: Target, results: Mapping[str, Result]) -> str:
    what = results[target.result].what
    if target.over is None:
        return what
    over = KINDS[target.over].title if target.over in KINDS else results[target.over].what
    return f"{what}, times {over}"
