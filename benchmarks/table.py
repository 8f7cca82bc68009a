"""Tables of measurements, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .rounds import Stat


@dataclass(slots=True)
class Row:
    """One server's row in a table.

    Attributes:
        stats: by the measurement's name.
        ratios: the same, divided by the base's of the same pair of rounds.
        note: why there are none.
    """

    server: str
    stats: dict[str, Stat] = field(default_factory=dict)
    ratios: dict[str, Stat] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The measurements of a scenario with a table of its own.

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


def markdown(table: Table) -> str:
    """Return a heading and a table: medians, with minimum and maximum of the rounds in brackets."""
    header = ["server"]
    for name, title in table.columns.items():
        header.append(title)
        if name in table.compared:
            header.append(f"times {table.base}")
    cells = [_cells(table, row, len(header)) for row in table.rows]
    lines = [f"**{table.title}**", "", grid(header, cells)]
    if table.remark:
        lines += ["", table.remark]
    return "\n".join(lines)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(map(_line, (header, ["---"] * len(header), *rows)))


def as_json(table: Table) -> dict[str, Any]:
    return asdict(table)


def text(stat: Stat | None) -> str:
    """Return the median, with minimum and maximum in brackets."""
    if stat is None:
        return ""
    if len(stat.values) == 1:
        return number(stat.median)
    return f"{number(stat.median)} ({number(stat.least)} to {number(stat.most)})"


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cells(table: Table, row: Row, count: int) -> list[str]:
    if row.note is not None and not row.stats:
        return [row.server, row.note, *[""] * (count - 2)]
    cells = [row.server]
    for name in table.columns:
        cells.append(text(row.stats.get(name)))
        if name in table.compared:
            cells.append(text(row.ratios.get(name)))
    return cells


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("  ", " ")
