"""What is read in one step is what is read in two."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from synap_realtime.errors import InvalidArgumentError
from synap_realtime.protocol.notification import RESERVED
from synap_realtime.server.wire import check_wire, read_wire, read_wires

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip
MEMBERS = {
    "type": st.sampled_from(["a", "a.b", "", "synap.x", "x" * 128, "é" * 129]),
    "data": st.dictionaries(st.text(max_size=3), values, max_size=3),
    "id": st.text(max_size=130),
    "requestId": st.text(max_size=3),
    "status": st.sampled_from(["pending", "success", "error", "done"]),
    "timestamp": st.sampled_from(
        ["2026-01-31T12:00:00Z", "2026-01-31t14:00:00.1234567+02:00", "2026-02-31T12:00:00Z", ""]
    ),
    "room": st.just("user_1"),
    "cursor": st.text(max_size=3),
    "rooms": st.lists(st.text(max_size=3)),
    "request_id": values,
}


def spelled(value: object) -> str:
    """With lone surrogates in escapes, as JSON can spell them."""
    return json.dumps(value)


@st.composite
def objects(draw: st.DrawFn) -> str:
    """JSON objects that look like notifications: a name may come twice, and mean either."""
    names = draw(st.lists(st.sampled_from([*MEMBERS, "x"]), max_size=8))
    if draw(st.booleans()):
        names = ["type", "data", *names]
    parts = []
    for name in names:
        right = MEMBERS.get(name, values)
        value = draw(right if draw(st.integers(0, 5)) else values)
        parts.append(f"{spelled(name)}:{spelled(value)}")
    return "{" + ",".join(parts) + "}"


def in_two_steps(text: str) -> dict[str, Any] | None:
    try:
        return check_wire(from_json(text, allow_inf_nan=False))
    except (ValueError, InvalidArgumentError):
        return None


def is_reserved(text: str) -> bool:
    wire = from_json(text)
    kind = wire.get("type") if isinstance(wire, dict) else None
    return isinstance(kind, str) and kind.startswith(RESERVED)


@given(objects() | values.map(spelled))
def test_one_step_reads_what_two_read_or_leaves_it_to_them(text: str) -> None:
    wire = read_wire(text.encode())
    if wire is not None and not is_reserved(text):
        other = in_two_steps(text)
        assert other is not None
        # Their order is a part of it, and so is 1 or 1.0.
        assert to_json(wire) == to_json(other)


@given(objects())
def test_it_leaves_only_what_is_wrong_or_null(text: str) -> None:
    value = from_json(text)
    if in_two_steps(text) is not None and None not in value.values():
        assert read_wire(text.encode()) is not None


@given(st.lists(objects(), max_size=3))
def test_a_batch_is_read_as_each_of_it(texts: list[str]) -> None:
    wires = read_wires(f'{{"x":1,"notifications":[{",".join(texts)}]}}'.encode())
    if wires is None:
        return
    assert len(wires) == len(texts) > 0
    for wire, text in zip(wires, texts, strict=True):
        rooms = wire.pop("rooms")
        alone = from_json(text)
        assert rooms == alone.pop("rooms")
        assert to_json(wire) == to_json(read_wire(to_json(alone)))


@given(st.binary(max_size=40) | values.map(spelled).map(str.encode))
def test_bytes_that_are_none_are_left(content: bytes) -> None:
    if read_wire(content) is None:
        return
    assert isinstance(from_json(content), dict)
