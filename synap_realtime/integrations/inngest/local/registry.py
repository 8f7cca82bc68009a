"""The functions that apps have registered, and which of them an event triggers.

See the Inngest SDK specification, section 4.3.2, "Syncing".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import durations
from .events import INVOKED
from .expressions import ExpressionError, matches

logger = logging.getLogger(__name__)

_IGNORED = (
    "concurrency", "debounce", "idempotency", "priority", "rateLimit", "singleton", "throttle",
)  # fmt: skip
_CANCELLABLE_S = 365 * 86400.0
_DEFAULT_RETRIES = 4
_NEVER_BATCHED = ("cancel", "debounce", "singleton", "priority")


class RegistrationError(Exception):
    """An app's registration cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """An event's name and, perhaps, a condition in CEL."""

    event: str
    expression: str | None


@dataclass(frozen=True, slots=True)
class Batching:
    """How a function's events are put together for one run."""

    max_size: int
    timeout_s: float
    key: str | None
    condition: str | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """An event that cancels a run, for so long after the run has started."""

    event: str
    expression: str | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Function:
    """A registered function: where to call it, how often at most, and what starts and stops it."""

    id: str
    url: str
    max_attempts: int
    triggers: tuple[Trigger, ...]
    batching: Batching | None = None
    cancels: tuple[Cancel, ...] = ()
    finish_timeout_s: float | None = None


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
        """The functions that an event starts: by their triggers, or because it invokes them."""
        return [
            function
            for functions in self._apps.values()
            for function in functions.values()
            if _is_invoked(function, event)
            or any(_is_triggered(function, trigger, event) for trigger in function.triggers)
        ]


def _is_invoked(function: Function, event: Mapping[str, Any]) -> bool:
    return event["name"] == INVOKED and bool(event["data"]["_inngest"]["fn_id"] == function.id)


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
        retries = (step.get("retries") or {}).get("attempts")
        function = Function(
            id=id,
            url=str(step["runtime"]["url"]),
            max_attempts=(_DEFAULT_RETRIES if retries is None else int(retries)) + 1,
            triggers=_read_triggers(id, config["triggers"]),
            batching=_read_batching(config),
            cancels=_read_cancels(config),
            finish_timeout_s=_seconds((config.get("timeouts") or {}).get("finish")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RegistrationError(f"a function's configuration is not readable: {error!r}") from error
    if ignored := [name for name in _IGNORED if config.get(name)]:
        logger.warning("LocalInngest ignores %s of function %s", ", ".join(ignored), id)
    return function


def _read_triggers(id: str, declared: Any) -> tuple[Trigger, ...]:
    triggers = []
    for trigger in declared:
        if "event" in trigger:
            triggers.append(Trigger(str(trigger["event"]), trigger.get("expression")))
        else:
            logger.warning("LocalInngest has no clock: function %s ignores its cron trigger", id)
    return tuple(triggers)


def _read_batching(config: Any) -> Batching | None:
    """The limits and the exclusions are those of the real server."""
    if not (declared := config.get("batchEvents")):
        return None
    if clashing := [name for name in _NEVER_BATCHED if config.get(name)]:
        raise RegistrationError(f"batchEvents and {clashing[0]} are mutually exclusive")
    max_size, timeout_s = int(declared["maxSize"]), _seconds(declared.get("timeout"))
    if max_size < 2 or timeout_s is None or timeout_s < 1:
        raise RegistrationError("batchEvents need a maxSize of 2 or more, a timeout of 1s or more")
    return Batching(max_size, timeout_s, declared.get("key"), declared.get("if"))


def _read_cancels(config: Any) -> tuple[Cancel, ...]:
    return tuple(
        Cancel(
            str(cancel["event"]),
            cancel.get("if"),
            _seconds(cancel.get("timeout")) or _CANCELLABLE_S,
        )
        for cancel in config.get("cancel") or ()
    )


def _seconds(duration: str | None) -> float | None:
    return None if duration is None else durations.seconds(duration)
