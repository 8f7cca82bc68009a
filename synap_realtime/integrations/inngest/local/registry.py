"""Store the registered functions, and find those that an event triggers.

See the Inngest SDK specification, section 4.3.2, "Syncing".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import durations
from .addresses import AddressError, AppHosts
from .events import INVOKED
from .expressions import ExpressionError, matches

logger = logging.getLogger(__name__)

_IGNORED = (
    "concurrency", "debounce", "idempotency", "priority", "rateLimit", "singleton", "throttle",
)  # fmt: skip
_CANCELLABLE_S = 365 * 86400.0
_DEFAULT_RETRIES = 4
MAX_APPS = 100
MAX_FUNCTIONS = 1000
"""Maximum number of functions of all apps together."""

MAX_TRIGGERS = 100
"""Maximum number of triggers of one function, including its cancellation events."""

_WORKERS_URL = "wss:"
_NEVER_BATCHED = ("cancel", "debounce", "singleton", "priority")


class RegistrationError(Exception):
    """An app's registration is invalid; the message states the reason."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """An event's name and an optional condition in CEL."""

    event: str
    expression: str | None


@dataclass(frozen=True, slots=True)
class Batching:
    """How a function's events are batched for one run."""

    max_size: int
    timeout_s: float
    key: str | None
    condition: str | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """An event that cancels a run, and how long after the start it applies."""

    event: str
    expression: str | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Function:
    """A registered function: its address, its maximum attempts, and what starts and cancels it."""

    id: str
    url: str
    max_attempts: int
    triggers: tuple[Trigger, ...]
    batching: Batching | None = None
    cancels: tuple[Cancel, ...] = ()
    finish_timeout_s: float | None = None

    @property
    def is_called_at_worker(self) -> bool:
        """Whether a connected worker is called instead of an address."""
        return self.url.startswith(_WORKERS_URL)


class Registry:
    """All apps' functions. A new registration of an app replaces its earlier ones."""

    def __init__(self, hosts: AppHosts | None = None) -> None:
        """Create an empty registry.

        Args:
            hosts: where apps may be served. Default: this machine.
        """
        self._hosts = hosts or AppHosts()
        self._apps: dict[str, dict[str, Function]] = {}

    def register(self, body: object) -> tuple[str, int]:
        """Register an app that is called at an address.

        Returns:
            the app's name and its number of functions.

        Raises:
            RegistrationError: a member is missing or invalid, an address is not allowed, or there
                are too many.
        """
        name, functions = _read_app(body)
        for function in functions:
            try:
                self._hosts.check(function.url)
            except AddressError as error:
                raise RegistrationError(f"function {function.id}: {error}") from error
        return self._keep(name, functions)

    def register_worker(self, body: object) -> tuple[str, int]:
        """Register an app that is called through its connected worker.

        Raises:
            RegistrationError: as for :meth:`register`.
        """
        name, functions = _read_app(body)
        for function in functions:
            if not function.url.startswith(_WORKERS_URL):
                raise RegistrationError(f"function {function.id}: a worker has no address")
        return self._keep(name, functions)

    def _keep(self, name: str, functions: list[Function]) -> tuple[str, int]:
        others = [each for app, each in self._apps.items() if app != name]
        if len(others) >= MAX_APPS:
            raise RegistrationError(f"there are {MAX_APPS} apps already")
        if sum(map(len, others)) + len(functions) > MAX_FUNCTIONS:
            raise RegistrationError(f"all apps together may have {MAX_FUNCTIONS} functions")
        self._apps[name] = {function.id: function for function in functions}
        return name, len(functions)

    def get(self, function_id: str) -> Function | None:
        for functions in self._apps.values():
            if function_id in functions:
                return functions[function_id]
        return None

    def triggered_by(self, event: Mapping[str, Any]) -> list[Function]:
        """Return the functions that an event starts: by their triggers, or by invoking them."""
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
        logger.error("not starting function %s: its trigger %s", function.id, error)
        return False


def _is_wildcard(pattern: str, name: str) -> bool:
    return pattern.endswith("*") and name.startswith(pattern[:-1])


def _read_app(body: object) -> tuple[str, list[Function]]:
    match body:
        case {"appname": str(name), "functions": [*configs]}:
            return name, [_read_function(config) for config in configs]
    raise RegistrationError("expected an object with appname and functions")


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
        raise RegistrationError(f"a function's configuration is invalid: {error!r}") from error
    if len(function.triggers) + len(function.cancels) > MAX_TRIGGERS:
        raise RegistrationError(f"function {id}: at most {MAX_TRIGGERS} triggers and cancellations")
    if ignored := [name for name in _IGNORED if config.get(name)]:
        logger.warning("LocalInngest ignores %s of function %s", ", ".join(ignored), id)
    return function


def _read_triggers(id: str, declared: Any) -> tuple[Trigger, ...]:
    triggers = []
    for trigger in declared:
        if "event" in trigger:
            triggers.append(Trigger(str(trigger["event"]), trigger.get("expression")))
        else:
            logger.warning(
                "LocalInngest does not support cron: ignoring the cron trigger of function %s", id
            )
    return tuple(triggers)


def _read_batching(config: Any) -> Batching | None:
    """Parse the batch configuration, with the limits and exclusions of the real server."""
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
