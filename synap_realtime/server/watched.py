"""Files that may change while the server runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

CHECK_INTERVAL_S = 0.25
"""How often files are looked at, at most."""

_State = tuple[tuple[int, ...] | None, ...]


class FileWatcher:
    """Some files, read together: whether one of them is another than it was."""

    def __init__(
        self, *files: Path, settles: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            settles: a change counts when two looks in a row found the same, so that a file that is
                still being written is not read half. Somebody has to ask again and again.
        """
        self._files = files
        self._settles = settles
        self._clock = clock
        self._looked_at = clock()
        self._state = self._seen = self._check()

    def have_changed(self) -> bool:
        """Whether they differ from what was last told of them: once for each change."""
        if not self._files or self._clock() - self._looked_at < CHECK_INTERVAL_S:
            return False
        self._looked_at = self._clock()
        before, self._seen = self._seen, self._check()
        if self._seen == self._state or (self._settles and self._seen != before):
            return False
        self._state = self._seen
        return True

    def report_again(self) -> None:
        """Report the present state once more, as soon as somebody asks."""
        self._state = ()

    @property
    def state(self) -> object:
        """Of the files, as they were last seen: equal as long as nothing changes."""
        return self._seen

    def _check(self) -> _State:
        return tuple(_state_of(file) for file in self._files)


def _state_of(file: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - follows a link that is turned to another
    except (OSError, ValueError):
        return None
    # The change time, too: a file that was made unreadable, or put back with its old times.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino, found.st_size
