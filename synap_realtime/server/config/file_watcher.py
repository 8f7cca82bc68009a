"""Watch files that may change while the server runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

CHECK_INTERVAL_S = 0.25
"""The shortest time between two checks of the files."""

_State = tuple[tuple[int, ...] | None, ...]


class FileWatcher:
    """Notice changes of a group of files that are read together."""

    def __init__(
        self, *files: Path, settles: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            settles: report a change only after two consecutive checks with the same result, so that
                a file is not read while it is being written. This needs periodic calls.
        """
        self._files = files
        self._settles = settles
        self._clock = clock
        self._checked_at = clock()
        self._state = self._seen = self._check()

    def have_changed(self) -> bool:
        """Return whether the files differ from the last report: True once for each change."""
        if not self._files or self._clock() - self._checked_at < CHECK_INTERVAL_S:
            return False
        self._checked_at = self._clock()
        before, self._seen = self._seen, self._check()
        if self._seen == self._state or (self._settles and self._seen != before):
            return False
        self._state = self._seen
        return True

    def report_again(self) -> None:
        """Let the next call of :meth:`have_changed` report the current state again."""
        self._state = ()

    @property
    def state(self) -> object:
        """The state at the last check, for comparison: equal as long as no file changes."""
        return self._seen

    def _check(self) -> _State:
        return tuple(_state_of(file) for file in self._files)


def _state_of(file: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - follows a link whose target changes
    except (OSError, ValueError):
        return None
    # The change time also notices changed permissions, and a restored modification time.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino, found.st_size
