"""Any result fits into the data of a notification."""

from __future__ import annotations

import array
import itertools
import math
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from django.utils.functional import lazy
from pydantic import BaseModel, Field, RootModel
from pydantic.dataclasses import dataclass as pydantic_dataclass

from synap_realtime.jobs import JobType, RunNotifications
from synap_realtime.jobs.strict import strict
from synap_realtime.jobs.truncation import truncate_result
from tests.support.models import Computed
from tests.support.numbers import Float32


@dataclass
class Report:
    url: str
    pages: Decimal = Decimal("1.5")


@dataclass(slots=True)
class Slotted:
    url: str
    extra: Any = None


@pydantic_dataclass
class Validated:
    file_url: str = field(default="/7.pdf")


class Aliased(BaseModel):
    file_url: str = Field(default="/7.pdf", serialization_alias="fileUrl")
    missing: str | None = None


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Refusing(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise UnreadableError

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


def cycle() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


WHOLE: list[tuple[object, Any]] = [
    (None, {}),
    (RootModel[list[int]]([1, 2]), {"result": [1, 2]}),
    (RootModel[dict[str, int]]({"a": 1}), {"a": 1}),
    (Report("/7.pdf"), {"url": "/7.pdf", "pages": "1.5"}),
    (Slotted("/7.pdf"), {"url": "/7.pdf", "extra": None}),
    (Validated(), {"file_url": "/7.pdf"}),
    (Aliased(), {"fileUrl": "/7.pdf"}),
    ([Report("/7.pdf")], {"result": [{"url": "/7.pdf", "pages": "1.5"}]}),
    ({"at": datetime(2026, 1, 2, tzinfo=UTC)}, {"at": "2026-01-02T00:00:00Z"}),
    ({"id": uuid.UUID(int=7)}, {"id": str(uuid.UUID(int=7))}),
    (Decimal("0.10"), {"result": "0.10"}),
    (Float32(0.5), {"result": 0.5}),
    (array.array("d", [0.5]), {"result": [0.5]}),
    (b"text", {"result": "text"}),
    (lazy(str, str)("Ready"), {"result": "Ready"}),
    ({"title": lazy(str, str)("Ready")}, {"title": "Ready"}),
    (MappingProxyType({"a": MappingProxyType({"b": 1})}), {"a": {"b": 1}}),
    (OrderedDict(a=1), {"a": 1}),
    (deque([1]), {"result": [1]}),
    (Colour.RED, {"result": "red"}),
    (Point(1, 2), {"result": [1, 2]}),
    ({1: "a"}, {"1": "a"}),
]


@pytest.mark.parametrize(("result", "data"), WHOLE, ids=lambda each: type(each).__name__)
def test_publishes_the_whole_result(result: object, data: Any) -> None:
    with strict() as problems:
        assert truncate_result(result) == data
    assert problems == []


PARTS: list[tuple[object, Any, list[str]]] = [
    (Computed(), {"url": "/7.pdf"}, ["size"]),
    ({"url": "/7.pdf", "size": math.nan}, {"url": "/7.pdf"}, ["size"]),
    ({"url": "/7.pdf", "raw": b"\xff"}, {"url": "/7.pdf"}, ["raw"]),
    ({"url": "/7.pdf", "raw": object()}, {"url": "/7.pdf"}, ["raw"]),
    ({"url": "/7.pdf", "text": "a\ud800"}, {"url": "/7.pdf"}, ["text"]),
    (Slotted("/7.pdf", object()), {"url": "/7.pdf"}, ["extra"]),
    ({"url": "/7.pdf", "loop": cycle()}, {"url": "/7.pdf"}, ["loop"]),
    ({"url": "/7.pdf", "error": UnreadableError()}, {"url": "/7.pdf"}, ["error"]),
    ({"url": "/7.pdf", "all": itertools.count()}, {"url": "/7.pdf"}, ["all"]),
    (UnreadableError(), {}, ["result"]),
    (Refusing(), {}, ["result"]),
    (object(), {}, ["result"]),
    (lazy(int, str)("x"), {}, ["result"]),
]


@pytest.mark.parametrize(("result", "data", "omitted"), PARTS, ids=lambda each: type(each).__name__)
def test_omits_values_that_cannot_be_encoded(
    result: object, data: Any, omitted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert truncate_result(result) == {**data, "truncated": True, "omitted": omitted}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"job result truncated: omitted {', '.join(omitted)}: ")
    completed = RunNotifications(JobType("report.creation"), "run").completed(result)
    assert completed.type == "report.creation.completed"


def test_does_not_read_an_iterator() -> None:
    pages: Iterator[int] = (page for page in [1, 2])
    assert truncate_result({"a": 1, "pages": [pages]}) == {
        "a": 1,
        "truncated": True,
        "omitted": ["pages"],
    }
    assert list(pages) == [1, 2]


def test_does_not_convert_values_over_the_limit() -> None:
    class Huge(list[int]):
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("it was read")

        def __len__(self) -> int:
            return 10**9

    class Array:
        nbytes = 10**10

        def tolist(self) -> list[int]:
            raise AssertionError("it was read")

    for huge in (Huge(), Array(), "x" * 10**7):
        assert truncate_result({"a": 1, "huge": huge}) == {
            "a": 1,
            "truncated": True,
            "omitted": ["huge"],
        }


def test_a_result_without_a_json_form_is_a_problem_in_strict_mode() -> None:
    with strict() as problems:
        truncate_result({"raw": object()})
        truncate_result("x" * 300_000)  # that it comes in part is documented
    assert problems == ["raw: TypeError: object is not JSON-serializable"]
