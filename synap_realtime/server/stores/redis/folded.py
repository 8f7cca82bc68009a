"""What the scripts of the log get and return of notifications with ``fold``."""

from __future__ import annotations

from collections.abc import Sequence

from ....protocol.cursor import Cursor
from ....protocol.folding import Fold
from ....protocol.job_state import run_of_key
from ....protocol.rooms import Room
from ..base import Entry, make_entry
from ..folds import (
    RUN_HAS_ENDED,
    TOO_LARGE,
    TOO_MANY_KEYS,
    Conflict,
    expand,
    offset_mismatch,
    other_mode,
    other_size,
    stale_attempt,
    utf8_size,
)


def fold_arguments(text: str, fold: Fold | None) -> tuple[bytes, ...]:
    """Return the arguments of PUBLISH that say what is folded.

    Args:
        text: the notification as JSON.
        fold: its ``fold``; None: only its job matters.
    """
    if fold is None:
        return b"", b"", b"", b""
    offset = -1 if fold.offset is None else fold.offset
    numbers = (
        f"{fold.mode} {fold.attempt} {fold.final:d} {offset} {fold.keeps_id:d} {len(fold.piece)}"
        f" {fold.size} {other_size(text, fold)}"
    )
    run = run_of_key(fold.key) or ""
    return numbers.encode(), fold.key.encode(), fold.piece.encode(), run.encode()


def parse_conflict(fold: Fold, row: bytes) -> Conflict:
    """Parse the reply of PUBLISH to a write that does not fit.

    Args:
        fold: the write.
        row: an exclamation mark, the code, the attempt of the key and the length of its text.
    """
    _, code, *numbers = row.decode().split()
    attempt, length, *_ = *map(int, numbers), 0, 0
    match code:
        case "stale_attempt":
            return stale_attempt(fold, attempt)
        case "fold_mode":
            return other_mode("append" if fold.mode == "replace" else "replace", attempt)
        case "offset_mismatch":
            return offset_mismatch(fold, length, attempt)
        case "too_many_keys":
            return TOO_MANY_KEYS
        case "run_has_ended":
            return RUN_HAS_ENDED
    return TOO_LARGE


def read_entry(room: Room, cursor: Cursor, text: str, whole: Sequence[bytes]) -> Entry:
    """Return an entry of the log of a room that has folded something.

    Args:
        text: the notification as JSON.
        whole: for a text, its size inside a JSON string and its parts, each after the number of
            code points before it and a space; otherwise empty.
    """
    if not whole:
        return make_entry(room, cursor, text)
    size, *parts = whole
    content = b"".join([part.partition(b" ")[2] for part in parts]).decode()
    text, fold = expand(make_entry(room, cursor, text).text, content, int(size))
    # All of the text is one piece, so the indexes of those that follow are not as published.
    return Entry(cursor, text, utf8_size(text), fold, ((cursor.offset, 0),))
