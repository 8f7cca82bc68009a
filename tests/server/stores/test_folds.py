"""The rules of folding, without a store."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from synap_realtime.protocol.folding import Mode, make_fold
from synap_realtime.server.stores.folds import (
    MAX_FOLDED_BYTES,
    REPEATED,
    Conflict,
    Effect,
    PieceText,
    Placement,
    expand,
    place_write,
    with_offset,
)
from synap_realtime.server.stores.memory_folds import Key


def notification(piece: str) -> str:
    fold = {"key": "k", "mode": "append", "attempt": 0}
    return to_json({"type": "a", "data": {"delta": piece}, "fold": fold}).decode()


def key(text: str = "", attempt: int = 0, mode: Mode = "append", *, is_closed: bool = False) -> Key:
    size = make_fold("k", "append", text).size
    return Key("k", mode, attempt, PieceText(text), size, is_closed)


def place(state: Key | None, piece: str = "", **members: Any) -> object:
    mode = members.pop("mode", "append")
    fold = make_fold("k", mode, piece, **members)
    return place_write(
        state, fold, notification(piece), (state.text if state else PieceText()).read
    )


@pytest.mark.parametrize(
    ("state", "write", "effect", "offset"),
    [
        (None, {"piece": "ab"}, Effect.BEGIN, 0),
        (None, {"piece": "ab", "offset": 0}, Effect.BEGIN, 0),
        (key("abc"), {"piece": "d"}, Effect.CONTINUE, 3),
        (key("aé😀"), {"piece": "d", "offset": 3}, Effect.CONTINUE, 3),
        (key("abc"), {"piece": "", "offset": 3}, Effect.CONTINUE, 3),
        (key("abc"), {"piece": "x", "attempt": 1}, Effect.RESTART, 0),
        (key("abc"), {"piece": "x", "attempt": 1, "offset": 0}, Effect.RESTART, 0),
        (key("abc", is_closed=True), {"piece": "abc", "offset": 0}, Effect.BEGIN, 0),
        (key("abc", is_closed=True), {"piece": "x", "attempt": 1}, Effect.BEGIN, 0),
        (key("abc", is_closed=True), {"mode": "replace"}, Effect.BEGIN, 0),
        (key(mode="replace"), {"mode": "replace"}, Effect.CONTINUE, 0),
        (key(mode="replace"), {"mode": "replace", "attempt": 9}, Effect.RESTART, 0),
    ],
)
def test_a_write_is_placed(
    state: Key | None, write: dict[str, Any], effect: Effect, offset: int
) -> None:
    placement = place(state, **write)
    assert isinstance(placement, Placement)
    assert (placement.effect, placement.offset) == (effect, offset)


@pytest.mark.parametrize(
    ("state", "write"),
    [
        (key("abc"), {"piece": "abc", "offset": 0}),
        (key("abc"), {"piece": "b", "offset": 1}),
        (key("aé😀d"), {"piece": "😀", "offset": 2}),
        (key("abc", is_closed=True), {"piece": "c", "offset": 2}),
    ],
)
def test_a_piece_that_is_there_is_repeated(state: Key, write: dict[str, Any]) -> None:
    assert place(state, **write) is REPEATED


@pytest.mark.parametrize(
    ("state", "write", "code", "offset", "attempt"),
    [
        (key("abc", 2), {"piece": "d", "attempt": 1}, "stale_attempt", None, 2),
        (key("abc", 2, is_closed=True), {"piece": "d"}, "stale_attempt", None, 2),
        (key("abc"), {"mode": "replace"}, "fold_mode", None, 0),
        (key("abc"), {"mode": "replace", "attempt": 1}, "fold_mode", None, 0),
        (key(mode="replace"), {"piece": "x"}, "fold_mode", None, 0),
        (None, {"piece": "x", "offset": 1}, "offset_mismatch", 0, 0),
        (key("abc"), {"piece": "x", "offset": 4}, "offset_mismatch", 3, 0),
        (key("abc"), {"piece": "x", "offset": 0}, "offset_mismatch", 3, 0),
        (key("abc"), {"piece": "cd", "offset": 2}, "offset_mismatch", 3, 0),
        (key("abc", 1), {"piece": "x", "attempt": 2, "offset": 3}, "offset_mismatch", 0, 1),
        (key("abc", is_closed=True), {"piece": "x", "offset": 3}, "offset_mismatch", 0, 0),
    ],
)
def test_a_write_that_does_not_fit_conflicts(
    state: Key | None, write: dict[str, Any], code: str, offset: int | None, attempt: int
) -> None:
    conflict = place(state, **write)
    assert isinstance(conflict, Conflict)
    assert (conflict.code, conflict.offset, conflict.attempt) == (code, offset, attempt)


@pytest.mark.parametrize("character", ["x", "é", "😀", "\n", "\x01", '"'])
def test_a_folded_notification_has_at_most_a_mebibyte_as_it_is_delivered(character: str) -> None:
    size = make_fold("k", "append", character).size
    most = MAX_FOLDED_BYTES // size
    full = key(character * (most - 200))
    placement = place(full, character * 10)
    assert isinstance(placement, Placement)
    text, _ = expand(notification(character * 10), character * placement.length, placement.size)
    assert len(text.encode()) <= MAX_FOLDED_BYTES
    conflict = place(full, character * 200)
    assert isinstance(conflict, Conflict)
    assert conflict.code == "payload_too_large"
    restarted = place(full, character * 200, attempt=1)
    assert isinstance(restarted, Placement)


@given(st.lists(st.one_of(st.text(max_size=20), st.integers(0, 200))), st.data())
def test_a_text_of_pieces_is_the_joined_string(
    pieces: list[str | int], data: st.DataObject
) -> None:
    text, model = PieceText(), ""
    for piece in pieces:
        added = piece if isinstance(piece, str) else "é😀" * piece
        text.append(added)
        model += added
        start = data.draw(st.integers(0, len(model) + 3))
        end = data.draw(st.integers(start, len(model) + 5))
        assert text.read(start, end) == model[start:end]
        if data.draw(st.booleans()):
            assert text.whole() == model
    assert (text.length, text.whole()) == (len(model), model)


def test_a_text_of_very_many_pieces_takes_little_time_and_memory() -> None:
    text = PieceText()
    began_at = time.process_time()
    for number in range(500_000):
        text.append("é" if number % 2 else "ab")
    assert len(text.chunks()) < 40
    assert text.length == len(text.whole()) == 750_000
    assert time.process_time() - began_at < 10, "copying all of it each time takes minutes"


def test_a_live_piece_has_its_offset_and_a_read_the_whole_text() -> None:
    written = (
        '{"type":"a","data":{"index":7,"delta":"c"},"fold":{"key":"k","mode":"append","attempt":2}}'
    )
    fold = make_fold("k", "append", "c", attempt=2).placed_at(2)
    live = json.loads(with_offset(written, fold))
    assert live["fold"] == {"key": "k", "mode": "append", "attempt": 2, "offset": 2}
    assert live["data"] == {"index": 7, "delta": "c"}
    text, whole = expand(written, "abc", 3)
    assert json.loads(text) == {
        "type": "a",
        "data": {"index": 0, "delta": "abc"},
        "fold": {"key": "k", "mode": "append", "attempt": 2, "offset": 0},
    }
    assert whole == make_fold("k", "append", "abc", attempt=2, offset=0)
