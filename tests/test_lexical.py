"""Whitespace, digits and dates of header fields, and ``Retry-After``, which has all of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from synap_realtime.endpoint import retry_after_s
from synap_realtime.lexical import MAX_NUMBER, parse_date, parse_digits

OTHER_NUMBERS = [
    "",
    "²",
    "٣",
    "+1",
    "-1",
    "1.5",
    "1e3",
    "1_0",
    " 1",
    "1\n",
    "\x1d1",
    "\xa01",
    "0x1",
]


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("120", 120), ("0" * 5000 + "2", 2), ("9" * 5000, MAX_NUMBER)],
)
def test_parses_ascii_digits(text: str, number: int) -> None:
    assert parse_digits(text) == number


@pytest.mark.parametrize("text", OTHER_NUMBERS)
def test_every_other_text_is_no_number(text: str) -> None:
    assert parse_digits(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ],
)
def test_parses_each_form_of_a_date(text: str) -> None:
    assert parse_date(text) == datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "Sun",
        "Sun, 06 Nov 1994 08:49:37 +0100",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 30 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT\x1d",
        "1994-11-06T08:49:37Z",
    ],
)
def test_every_other_text_is_no_date(text: str) -> None:
    assert parse_date(text) is None


@pytest.mark.parametrize(("value", "seconds"), [("0", 0.0), ("\t 7 ", 7.0), ("9" * 5000, 1e18)])
def test_retry_after_is_a_number_of_seconds(value: str, seconds: float) -> None:
    assert retry_after_s(value) == seconds


def test_retry_after_is_a_date() -> None:
    moment = datetime.now(UTC) + timedelta(hours=1)
    assert 3500 < (retry_after_s(f"{moment:%a, %d %b %Y %H:%M:%S} GMT") or 0) <= 3600
    assert retry_after_s("Sun, 06 Nov 1994 08:49:37 GMT") == 0


@pytest.mark.parametrize(
    "value", [None, *OTHER_NUMBERS[:6], "1 2", "\x1d1", "1\x85", "\xa01", "soon"]
)
def test_retry_after_in_any_other_form_counts_as_none(value: str | None) -> None:
    assert retry_after_s(value) is None
