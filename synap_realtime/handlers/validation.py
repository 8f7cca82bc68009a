"""Validate a job's input. The errors are written for the user."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from ..errors import InvalidInputError
from ..jobs import JobRun

MAX_TITLE = 500
MAX_TEXT = 1_000_000
"""Maximum length in characters. Longer content should be uploaded as a file."""

_NAMESPACE = uuid.UUID("8f5c1d1e-9d0b-5c1c-9f5e-6b1f4a6a7d10")


def user_of(run: JobRun) -> str:
    if not run.user_id:
        raise InvalidInputError("The request names no user: userId is missing.")
    return run.user_id


def stable_id(run: JobRun, what: str) -> str:
    """Return an id that is the same on every attempt of a run."""
    return str(uuid.uuid5(_NAMESPACE, f"{run.run_id}:{what}"))


def text(data: Mapping[str, Any], name: str, *, label: str, limit: int = MAX_TEXT) -> str:
    """Return a text that must be present and not blank."""
    value = optional_text(data, name, label=label, limit=limit)
    if value is None:
        raise InvalidInputError(f"{label} is empty.")
    return value


def optional_text(
    data: Mapping[str, Any], name: str, *, label: str, limit: int = MAX_TEXT
) -> str | None:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidInputError(f"{label} must be text.")
    if len(value) > limit:
        raise InvalidInputError(f"{label} is too long: at most {limit:,} characters.")
    return value if value.strip() else None


def optional_date(data: Mapping[str, Any], name: str, *, label: str) -> str | None:
    """Return an ISO 8601 date, or date and time, unchanged."""
    value = optional_text(data, name, label=label)
    if value is None:
        return None
    try:
        date.fromisoformat(value) if len(value) == 10 else datetime.fromisoformat(value)
    except ValueError:
        raise InvalidInputError(f"{label} must be a date such as 2026-12-31.") from None
    return value


def one_of(data: Mapping[str, Any], name: str, choices: tuple[str, ...], *, label: str) -> str:
    """Return one of the choices; the first is the default."""
    value = optional_text(data, name, label=label) or choices[0]
    if value not in choices:
        raise InvalidInputError(f"{label} must be one of {', '.join(choices)}.")
    return value
