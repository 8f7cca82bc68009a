"""The log of the code under test, in memory, with its rules."""

from __future__ import annotations

import io
import logging

from synap_realtime.server.logging import setup as logs

from .target import require


class MemoryLog:
    """Receives what any logger writes, formatted as the server formats it."""

    def __init__(self, level: int) -> None:
        self._text = io.StringIO()
        self._handler = logging.StreamHandler(self._text)
        self._handler.setFormatter(logs._TextFormatter(logs._TEXT))
        logger = logging.getLogger()
        logger.addHandler(self._handler)
        logger.setLevel(level)

    def take(self) -> str:
        """Return what was written since the last call."""
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return text

    def check(self, max_bytes: int) -> None:
        """
        Args:
            max_bytes: written since the last call.

        Raises:
            RuleBrokenError: more was written, or an error was.
        """
        text = self.take()
        require("Traceback" not in text, f"a traceback is logged: {text[-2000:]}")
        require(" ERROR " not in text, f"an error is logged: {text[-2000:]}")
        require(len(text) <= max_bytes, f"{len(text)} bytes are logged")
        require(text.isprintable() or text.replace("\n", "").isprintable(), "log lines are text")

    def close(self) -> None:
        logging.getLogger().removeHandler(self._handler)
