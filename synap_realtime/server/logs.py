"""How a room server logs: lines for people, or JSON for programs. Ids, and never what is in a
notification, a key or a token."""

from __future__ import annotations

import logging
from typing import Literal

from ..errors import ConfigurationError

Format = Literal["human", "json"]

_HUMAN = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(level: str, style: Format) -> None:
    """Log to stderr from now on.

    Raises:
        ConfigurationError: python-json-logger is wanted and not installed.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_json_formatter() if style == "json" else logging.Formatter(_HUMAN))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _json_formatter() -> logging.Formatter:
    """One object a line: ``timestamp`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, and
    ``exc_info`` where there is one."""
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ImportError:
        raise ConfigurationError(
            "--log-format json needs: pip install 'synap-realtime[server]'"
        ) from None
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        json_ensure_ascii=False,
    )
