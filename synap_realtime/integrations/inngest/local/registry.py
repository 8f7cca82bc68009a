"""The functions that apps have registered, and which of them an event triggers.

See the Inngest SDK specification, section 4.3.2, "Syncing".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .expressions import ExpressionError, matches

logger = logging.getLogger(__name__)

_IGNORED = (
    "batchEvents", "cancel", "concurrency", "debounce", "idempotency", "priority", "rateLimit",
    "singleton", "throttle", "timeouts",
)  # fmt: skip


class RegistrationError(Exception):
    """An app's registration cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """An event's name and, perhaps, a condition in CEL."""

    event: str
    expression: str | None


@dataclass(frozen=True, slots=True)
class Function:
    """A registered function: where to call it, and how often at most."""

    id: str
    url: str
    max_attempts: int
    triggers: tuple[Trigger, ...]


class Registry:
    """All apps' functions. An app that registers again replaces its earlier ones."""

    def __init__(self) -> None:
        self._apps: dict[str, dict[str, Function]] = {}

    def register(self, body: object) -> tuple[str, int]:
        """Take an app's registration.

        Returns:
            The app's name and how many functions it has.

        Raises:
            RegistrationError: a member is missing or wrong.
        """
        match body:
            case {"appname": str(name), "functions": [*configs]}:
                functions = [_read_function(config) for config in configs]
            case _:
                raise RegistrationError("expected an object with appname and functions")
        self._apps[name] = {function.id: function for function in functions}
        return name, len(functions)

    def get(self, function_id: str) -> Function | None:
        for functions in self._apps.values():
            if function_id in functions:
                return functions[function_id]
        return None

    def triggered_by(self, event: Mapping[str, Any]) -> list[Function]:
        """The functions that an event starts."""
        return [
            function
            for functions in self._apps.values()
            for function in functions.values()
            if any(_is_triggered(function, trigger, event) for trigger in function.triggers)
        ]


def _is_triggered(function: Function, trigger: Trigger, event: Mapping[str, Any]) -> bool:
    if trigger.event != event["name"] and not _is_wildcard(trigger.event, event["name"]):
        return False
    if trigger.expression is None:
        return True
    try:
        return matches(trigger.expression, event=event)
    except ExpressionError as error:
        logger.error("function %s is not started: its trigger %s", function.id, error)
        return False


def _is_wildcard(pattern: str, name: str) -> bool:
    return pattern.endswith("*") and name.startswith(pattern[:-1])


def _read_function(config: Any) -> Function:
    try:
        step = config["steps"]["step"]
        id = str(config["id"])
        url = str(step["runtime"]["url"])
        retries = (step.get("retries") or {}).get("attempts")
        declared = config["triggers"]
    except (KeyError, TypeError, AttributeError) as error:
        raise RegistrationError(f"a function's configuration is not readable: {error!r}") from error
    triggers = []
    for trigger in declared:
        if "event" in trigger:
            triggers.append(Trigger(str(trigger["event"]), trigger.get("expression")))
        else:
            logger.warning("LocalInngest has no clock: function %s ignores its cron trigger", id)
    if ignored := [name for name in _IGNORED if config.get(name)]:
        logger.warning("LocalInngest ignores %s of function %s", ", ".join(ignored), id)
    return Function(id, url, (3 if retries is None else int(retries)) + 1, tuple(triggers))
