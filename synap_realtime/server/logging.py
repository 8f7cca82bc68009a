"""How a room server logs: lines for people, or JSON for programs. Ids, and never what is in a
notification, a key or a token."""

from __future__ import annotations

import json
import logging
import re
from typing import Literal

from ..errors import ConfigurationError
from ..extras import lacks
from .events import MAX_LINES_PER_S, RateLimitFilter

Format = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_UNTRUSTED_LOGGERS = ("uvicorn.error", "synap_realtime.server.authorization")
"""Who else writes a line for what a single request is: bounded as those of ``events`` are."""
_PLAIN = re.compile(r"[\w.:+*|@/-]+", re.ASCII)
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class _TextFormatter(logging.Formatter):
    """A line, and behind it what a record has more: ``published room=user_1 listeners=2``."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        members = vars(record).items()
        more = [f" {name}={_quote(value)}" for name, value in members if name not in _OWN]
        return super().formatMessage(record) + "".join(more)


def _quote(value: object) -> str:
    """In quotes where it could be taken for something else: nobody writes lines of their own."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())


def configure(level: str, style: Format, worker: int | None = None) -> None:
    """Log to stderr from now on.

    Args:
        worker: its number, for each line, where several processes write to one log.

    Raises:
        ConfigurationError: python-json-logger is wanted and not installed.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_json_formatter() if style == "json" else _TextFormatter(_TEXT))
    if worker is not None:
        handler.addFilter(WorkerIdFilter(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in _UNTRUSTED_LOGGERS:
        logging.getLogger(name).addFilter(RateLimitFilter(MAX_LINES_PER_S))


class WorkerIdFilter(logging.Filter):
    """Lets all through, with the worker's number."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True


def _json_formatter() -> logging.Formatter:
    """One object a line: ``timestamp`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, and
    ``exc_info`` where there is one."""
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ImportError as error:
        raise ConfigurationError(lacks("--log-format json", error, "server")) from None
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        json_ensure_ascii=False,
    )
