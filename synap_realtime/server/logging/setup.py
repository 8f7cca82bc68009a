"""Configure the log of the server: text or JSON.

Records contain ids, and never a payload, a key or a token.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Literal

from ...errors import ConfigurationError
from ...extras import lacks
from .events import MAX_LINES_PER_S, RateLimitFilter

Format = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_UNTRUSTED_LOGGERS = ("uvicorn.error", "synap_realtime.server.auth.authorization")
"""Other loggers that write a line for a single request. Their rate is limited as in ``events``."""
_PLAIN = re.compile(r"[\w.:+*|@/-]+", re.ASCII)
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class _TextFormatter(logging.Formatter):
    """Append the extra fields of a record to its line: ``published room=user_1 subscribers=2``."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        members = vars(record).items()
        more = [f" {name}={_quote(value)}" for name, value in members if name not in _OWN]
        return super().formatMessage(record) + "".join(more)


def _quote(value: object) -> str:
    """Quote a value that is not a plain word, so that a client cannot forge fields or lines."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())


def configure(level: str, style: Format, worker: int | None = None) -> None:
    """Log to stderr from now on.

    Args:
        worker: the number of this process, which each line shows, if several processes write to
            one log.

    Raises:
        ConfigurationError: JSON needs python-json-logger, which is not installed.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_json_formatter() if style == "json" else _TextFormatter(_TEXT))
    if worker is not None:
        handler.addFilter(WorkerIdFilter(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in _UNTRUSTED_LOGGERS:
        logging.getLogger(name).addFilter(RateLimitFilter(MAX_LINES_PER_S))


class WorkerIdFilter(logging.Filter):
    """Add the worker's number to each record."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True


def _json_formatter() -> logging.Formatter:
    """Return a formatter that writes one object a line.

    Its members are ``timestamp`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, and
    ``exc_info`` if there is one.
    """
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ImportError as error:
        raise ConfigurationError(
            lacks("--log-format json (SYNAP_REALTIME_LOG_FORMAT)", error, "server")
        ) from None
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        json_ensure_ascii=False,
    )
