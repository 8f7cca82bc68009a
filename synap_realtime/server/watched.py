"""Files that may change while the server runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

LOOK_EVERY_S = 1.0
"""How often they are looked at, while somebody asks."""

_State = tuple[tuple[int, ...] | None, ...]


class Watched:
    """Some files, read together: whether one of them is another than it was."""

    def __init__(self, *files: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._looked_at = clock()
        self._state = self._look()

    def have_changed(self) -> bool:
        """Whether they differ from what was last told of them: once for each change."""
        if not self._files or self._clock() - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = self._clock()
        before, self._state = self._state, self._look()
        return self._state != before

    def _look(self) -> _State:
        return tuple(_state_of(file) for file in self._files)


def _state_of(file: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - follows a link that is turned to another
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
