"""The package's errors cross a process's border as they are."""

from __future__ import annotations

import copy
import pickle

import pytest

from synap_realtime import InvalidArgumentError, InvalidInputError, JobError, SubscriptionError


@pytest.mark.parametrize("take", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("user_id", "wrong"),
        InvalidInputError("It is empty."),
        JobError("No paper."),
        SubscriptionError("refused", code=4403, retriable=True),
    ],
)
def test_an_error_pickles_and_copies(error: Exception, take: object) -> None:
    taken = take(error)  # type: ignore[operator]
    assert type(taken) is type(error)
    assert str(taken) == str(error)
    assert vars(taken) == vars(error)
