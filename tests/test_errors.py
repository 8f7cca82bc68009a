"""The package's errors survive pickling unchanged."""

from __future__ import annotations

import asyncio
import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest

import synap_realtime
from synap_realtime import InvalidArgumentError, InvalidInputError, JobError, SubscriptionError
from synap_realtime.errors import SynapRealtimeError, deciding_error


class NumberedError(JobError):
    """An application's: made with other arguments than its message."""

    def __init__(self, number: int, *, hint: str) -> None:
        super().__init__(f"{number}: {hint}")
        self.number = number


def errors() -> list[SynapRealtimeError]:
    for module in pkgutil.walk_packages(synap_realtime.__path__, "synap_realtime."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    made: dict[type, tuple[Any, ...]] = {InvalidArgumentError: ("user_id", "wrong")}
    found: list[type[SynapRealtimeError]] = [SynapRealtimeError]
    for kind in found:
        found += [
            each for each in kind.__subclasses__() if each.__module__.startswith("synap_realtime.")
        ]
    return [kind(*made.get(kind, ("It broke.",))) for kind in found]


def pickled(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize(
    "error",
    [
        *errors(),
        SubscriptionError("refused", code=4403, retriable=True),
        NumberedError(7, hint="No paper."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_pickles_and_copies(error: Exception, take: Callable[[Any], Any]) -> None:
    error.add_note("noted")
    taken = take(error)
    assert type(taken) is type(error)
    assert (str(taken), taken.args, vars(taken)) == (str(error), error.args, vars(error))


EMPTY, BUSY = InvalidInputError("It is empty."), JobError("The printer is busy.")


@pytest.mark.parametrize(
    ("error", "decides"),
    [
        (EMPTY, EMPTY),
        (ExceptionGroup("g", [EMPTY]), EMPTY),
        (ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [KeyError(), EMPTY])]), EMPTY),
        (ExceptionGroup("g", [BUSY, EMPTY]), EMPTY),
        (ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [BUSY])]), BUSY),
        (BaseExceptionGroup("g", [asyncio.CancelledError(), EMPTY]), EMPTY),
    ],
)
def test_a_groups_deciding_error(error: BaseException, decides: BaseException) -> None:
    assert deciding_error(error) is decides


def test_a_group_without_a_job_error_decides_itself() -> None:
    group = ExceptionGroup("g", [ValueError()])
    assert deciding_error(group) is group
