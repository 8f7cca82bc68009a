"""Execute one statement for many rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

_ROWS = (64, 8, 1)  # rows per statement: few sizes, so that SQLite's statement cache has each

MAX_ROWS = _ROWS[0]
"""The most rows of one statement."""


def execute_values(
    db: sqlite3.Connection, sql: str, rows: Sequence[tuple[object, ...]]
) -> list[Any]:
    """Execute a statement for many rows, by few calls: each one releases the interpreter's lock.

    Args:
        sql: a statement with ``{}`` in place of the row values.
        rows: the values.
    """
    found, start = [], 0
    for size in _ROWS:
        while len(rows) - start >= size:
            part = rows[start : start + size]
            row = f"({', '.join('?' * len(part[0]))})"
            values = [value for each in part for value in each]
            found += db.execute(sql.format(", ".join([row] * size)), values).fetchall()
            start += size
    return found
