"""Log failures of the store once, and its recovery once."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Health:
    """Logs once that an operation fails, and once that it has recovered."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self.problem: str | None = None

    def report(self, problem: str | None) -> None:
        if problem is None and self.problem is not None:
            logger.warning("store recovered: %s succeeded", self._operation)
        elif problem is not None and self.problem is None:
            logger.error(
                "store unavailable: %s failed: %s; answering 503 until it recovers",
                self._operation,
                problem,
            )
        self.problem = problem
