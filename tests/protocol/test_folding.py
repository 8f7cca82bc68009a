"""PROTOCOL.md, "Folding": the member ``fold``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap_realtime import InvalidArgumentError
from synap_realtime.protocol.folding import MAX_ATTEMPT, Fold, make_fold, parse_fold

DATA = {"delta": "é"}


def fold(**members: Any) -> dict[str, Any]:
    return {"key": "k", "mode": "append", **members}


def test_parses_every_member() -> None:
    value = fold(attempt=2.0, offset=7, final=True)
    assert parse_fold(value, DATA) == Fold("k", "append", 2, True, 7, "é", 2)
    assert parse_fold(fold(mode="replace", attempt=MAX_ATTEMPT), {}) == Fold(
        "k", "replace", MAX_ATTEMPT
    )


def test_optional_member_that_is_null_is_absent() -> None:
    value = fold(attempt=None, offset=None, final=None)
    assert parse_fold(value, DATA) == parse_fold(fold(), DATA)


@pytest.mark.parametrize(
    ("value", "data", "field"),
    [
        ("text", DATA, "fold"),
        ([], DATA, "fold"),
        ({}, DATA, "fold.key"),
        (fold(key=""), DATA, "fold.key"),
        (fold(key=7), DATA, "fold.key"),
        (fold(key="k" * 129), DATA, "fold.key"),
        (fold(key="a\nb"), DATA, "fold.key"),
        (fold(key="é"), DATA, "fold.key"),
        (fold(key="\ud800"), DATA, "fold.key"),
        ({"key": "k"}, DATA, "fold.mode"),
        (fold(mode="Append"), DATA, "fold.mode"),
        (fold(mode=["append"]), DATA, "fold.mode"),
        (fold(attempt=-1), DATA, "fold.attempt"),
        (fold(attempt=True), DATA, "fold.attempt"),
        (fold(attempt=1.5), DATA, "fold.attempt"),
        (fold(attempt=float("inf")), DATA, "fold.attempt"),
        (fold(attempt=MAX_ATTEMPT + 1), DATA, "fold.attempt"),
        (fold(offset=-1), DATA, "fold.offset"),
        (fold(offset="0"), DATA, "fold.offset"),
        (fold(offset=2**63), DATA, "fold.offset"),
        (fold(mode="replace", offset=0), DATA, "fold.offset"),
        (fold(final=1), DATA, "fold.final"),
        (fold(of="x"), DATA, "fold"),
        (fold(), {}, "data.delta"),
        (fold(), {"delta": None}, "data.delta"),
        (fold(), {"delta": ["x"]}, "data.delta"),
        (fold(), {"delta": "\udfff"}, "data.delta"),
    ],
)
def test_names_the_member_that_is_wrong(value: object, data: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_fold(value, data)
    assert caught.value.field == field
    str(caught.value).encode()  # it can be logged and answered


@given(st.lists(st.text()))
def test_sizes_of_pieces_add_up_to_that_of_the_text(pieces: list[str]) -> None:
    size = sum(make_fold("k", "append", piece).size for piece in pieces)
    text = json.dumps("".join(pieces), ensure_ascii=False).encode()
    # The encoders differ in the escapes of a few control characters only.
    assert size == make_fold("k", "append", "".join(pieces)).size
    assert abs(size - (len(text) - 2)) <= 5 * sum(c < " " or c == "\x7f" for c in "".join(pieces))


def test_on_the_wire_the_offset_is_left_to_the_store() -> None:
    assert make_fold("k", "append", "x", offset=3, final=True).to_wire() == {
        "key": "k",
        "mode": "append",
        "attempt": 0,
        "final": True,
    }
