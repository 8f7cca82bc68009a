"""Arguments of a job's reports are converted or omitted, and never fail the job."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import pytest
from django.utils.functional import lazy

from synap_realtime import InvalidArgumentError
from synap_realtime.jobs import strict
from synap_realtime.jobs.arguments import check_delta, check_progress, check_stall_after_s
from tests.support.numbers import Float32


class Stage(StrEnum):
    RENDERING = "Rendering"


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no")


class DelegatingString:
    """As Flask-Babel's: every attribute is that of the text."""

    def __getattr__(self, name: str) -> Any:
        return getattr("Rendering", name)

    def __str__(self) -> str:
        return "Rendering"


class Broken:
    def __float__(self) -> float:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


def fails() -> str:
    raise RuntimeError("no settings")


@contextmanager
def production() -> Iterator[None]:
    with patch.object(strict, "_collected", []), patch.object(strict, "_logged", set()):
        yield


@pytest.mark.parametrize(
    ("value", "fraction"),
    [
        (0.5, 0.5),
        (1, 1.0),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 2), 0.5),
        (Float32(0.5), 0.5),
        (10**400, 1.0),
        (-(10**400), 0.0),
        (float("inf"), 1.0),
        (None, None),
    ],
)
def test_converts_every_real_number(value: Any, fraction: float | None) -> None:
    assert check_progress(value, "x", None) == (fraction, "x", None)


LABELS = [Stage.RENDERING, DelegatingString(), lazy(str, str)("Rendering")]


@pytest.mark.parametrize("label", LABELS)
def test_converts_text_like_values(label: Any) -> None:
    checked = check_progress(0.5, label, None)
    assert checked == (0.5, "Rendering", None)
    assert type(checked[1]) is str
    assert check_delta(label) == ["Rendering"]
    assert check_delta(Loud("x")) == ["x"]


def test_converts_a_timedelta() -> None:
    assert check_progress(None, None, timedelta(minutes=2)) == (None, None, 120.0)


WRONG: list[tuple[tuple[Any, Any, Any], Any, str]] = [
    ((float("nan"), "x", None), (None, "x", None), "fraction"),
    ((Decimal("sNaN"), "x", None), (None, "x", None), "fraction"),
    ((True, "x", None), (None, "x", None), "fraction"),
    (("0.5", "x", None), (None, "x", None), "fraction"),
    ((1j, "x", None), (None, "x", None), "fraction"),
    ((Broken(), "x", None), (None, "x", None), "fraction"),
    ((float("nan"), None, None), None, "fraction"),
    ((0.5, 7, None), (0.5, None, None), "label"),
    ((0.5, b"x", None), (0.5, None, None), "label"),
    ((0.5, lazy(fails, str)(), None), (0.5, None, None), "label"),
    ((0.5, "x", float("inf")), (0.5, "x", None), "stall_after_s"),
    ((0.5, "x", float("nan")), (0.5, "x", None), "stall_after_s"),
    ((0.5, "x", 0), (0.5, "x", None), "stall_after_s"),
    ((0.5, "x", timedelta()), (0.5, "x", None), "stall_after_s"),
]


@pytest.mark.parametrize(("arguments", "published", "field"), WRONG)
def test_omits_an_invalid_argument_and_logs_it_once(
    caplog: pytest.LogCaptureFixture, arguments: tuple[Any, Any, Any], published: Any, field: str
) -> None:
    caplog.set_level(logging.WARNING)
    with production():
        for _ in range(3):
            assert check_progress(*arguments) == published
    (record,) = caplog.records
    assert f"{field}: " in record.getMessage()
    assert "; ignored" in record.getMessage()
    assert "test_arguments.py" in record.getMessage()


@pytest.mark.parametrize("text", [None, b"x", 7, lazy(fails, str)()])
def test_leaves_out_a_delta_that_is_no_text(caplog: pytest.LogCaptureFixture, text: Any) -> None:
    with production():
        assert check_delta(text) == []
    assert "text: " in caplog.text


@pytest.mark.parametrize(("arguments", "published", "field"), WRONG)
def test_invalid_argument_raises_in_strict_mode(
    arguments: tuple[Any, Any, Any], published: Any, field: str
) -> None:
    with strict.strict(), pytest.raises(InvalidArgumentError, match=field):
        check_progress(*arguments)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "60", None, True])
def test_invalid_stall_after_s_raises_at_definition(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="stall_after_s"):
        check_stall_after_s(value)
