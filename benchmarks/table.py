"""Format measurements as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .rounds import Row, Stat, Table


def markdown(table: Table) -> str:
    """Return a heading and a table: medians, with minimum and maximum of the rounds in brackets."""
    header = ["server"]
    for name, title in table.columns.items():
        header.append(title)
        if name in table.compared:
            header.append(f"times {table.base}")
    lines = [f"**{table.title}**", "", _line(header), _line(["---"] * len(header))]
    lines += [_line(_cells(table, row, len(header))) for row in table.rows]
    if table.remark:
        lines += ["", table.remark]
    return "\n".join(lines)


def as_json(table: Table) -> dict[str, Any]:
    return asdict(table)


def _cells(table: Table, row: Row, count: int) -> list[str]:
    if row.note is not None and not row.stats:
        return [row.server, row.note, *[""] * (count - 2)]
    cells = [row.server]
    for name in table.columns:
        cells.append(_text(row.stats.get(name)))
        if name in table.compared:
            cells.append(_text(row.ratios.get(name)))
    return cells


def _text(stat: Stat | None) -> str:
    if stat is None:
        return ""
    if len(stat.values) == 1:
        return _number(stat.median)
    return f"{_number(stat.median)} ({_number(stat.least)} to {_number(stat.most)})"


def _number(value: float) -> str:
    """Format a number with three significant digits."""
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("  ", " ")
