"""A function whose body would not run is rejected, by its name and with the fix."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from synap_realtime import InvalidArgumentError
from synap_realtime.jobs.functions import check_job_function, is_coroutine_function


def pages(run: object) -> Iterator[int]:
    yield 1


async def parts(run: object) -> AsyncIterator[int]:
    yield 1


class Pages:
    def __call__(self, run: object) -> Iterator[int]:
        yield 1

    async def method(self, run: object) -> AsyncIterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (pages, "pages"),
        (parts, "parts"),
        (functools.partial(parts, 1), "parts"),
        (Pages(), "Pages"),
        (Pages().method, "Pages.method"),
    ],
)
def test_rejects_generator_functions(fn: object, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        check_job_function("fn", fn)
    assert str(raised.value).startswith(f"fn: {name}() is a generator function")
    assert "return the result" in str(raised.value)


def plain(run: object) -> list[int]:
    return [n for n in (1, 2)] + list(n for n in (3,))  # noqa: C400, C416 - has a generator inside


async def coroutine(run: object) -> None: ...


class Callable:
    async def __call__(self, run: object) -> None: ...


@pytest.mark.parametrize(
    ("fn", "is_coroutine"),
    [
        (plain, False),
        (coroutine, True),
        (Callable(), True),
        (functools.partial(coroutine), True),
        (lambda run: pages(run), False),
        (dict, False),
        (None, False),
    ],
)
def test_accepts_functions_whose_body_runs(fn: Any, is_coroutine: bool) -> None:
    check_job_function("fn", fn)
    assert is_coroutine_function(fn) is is_coroutine
