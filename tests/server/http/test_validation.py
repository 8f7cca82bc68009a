"""One-pass and two-pass decoding of a notification agree."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from synap_realtime.server.http.publish import (
    decode_batch,
    decode_notification,
    encode_notification,
)
from synap_realtime.server.messages import RequestError, decode_json

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


BODY = b'{"type":"a","data":{}}'
MIB = 1024 * 1024


def note(members: bytes) -> bytes:
    return b'{"type":"a","data":{},' + members + b"}"


def data(value: bytes) -> bytes:
    return b'{"type":"a","data":{"x":' + value + b"}}"


ONE_PASS = {
    "the least": BODY,
    "all members": note(b'"id":"n1","requestId":"r","status":"pending","x":[1,null,{"y":2}]'),
    "a moment": note(b'"timestamp":"2026-01-31T14:00:00+02:00"'),
    "another order": b'{"x":1,"data":{"b":1,"a":2},"id":"n1","type":"a"}',
    "spaces around": b" \r\n\t" + BODY + b" \r\n\t",
    "the type twice": b'{"type":5,"data":{},"type":"b"}',
    "the data twice": b'{"type":"a","data":[],"x":1,"data":{"y":1},"x":2}',
    "a member of data twice": data(b'1,"y":2,"x":3'),
    "an id twice": note(b'"id":7,"id":"n1"'),
    "escapes": data(rb'"\u0041\n\"\\\/\u00e9\ud83d\ude00\u0000"'),
    "other letters": data('"é😀\u2028"'.encode()),
    "an id of other letters": note('"id":"é\\"\\u0000😀"'.encode()),
    "a type in escapes": b'{"\\u0074ype":"\\u0061","data":{}}',
    "numbers": data(b"[0,-0,-0.0,1.0,1e2,1E-7,0.1,1e22,1e-400,9007199254740993]"),
    "a large number": data(b"9" * 400),
    "as deep as may be": data(b"[" * 190 + b"]" * 190),
    "names that mean something elsewhere": note(b'"__proto__":{},"request_id":5,"model_extra":1'),
    "an empty name": note(b'"":{"":""}'),
    "the longest type": b'{"type":"%b","data":{}}' % ("é" * 128).encode(),
    "rooms, which is any member": note(b'"rooms":["user_2"]'),
    "large": data(b'"%b"' % (b"y" * 30_000)),
}

OTHERWISE = {
    "nothing": b"",
    "no object": b'["a"]',
    "an empty object": b"{}",
    "text": b'"%b"' % (b"a" * 30),
    "not JSON": b"x" * len(BODY),
    "half of it": BODY[:-1] + b" ",
    "two of them": BODY + BODY,
    "something behind": BODY + b"x",
    "a comma too many": b'{"type":"a","data":{},}',
    "a comment": BODY + b"//x",
    "single quotes": BODY.replace(b'"', b"'"),
    "a NUL behind": BODY + b"\0",
    "a NUL within": data(b'"\0"'),
    "a line's end in a text": data(b'"\n"'),
    "NaN": data(b"NaN"),
    "Infinity": data(b"[Infinity]"),
    "-Infinity": data(b"-Infinity"),
    "NaN in a member": note(b'"x":NaN'),
    "too large a number": data(b"1e999"),
    "one below zero": note(b'"x":[-1e999]'),
    "too many digits": data(b"9" * 5000),
    "NaN, and a text that says so": data(b'"NaN Infinity"'),
    "only the text": note(b'"NaN":"Infinity"'),
    "half of a letter": data(rb'"\ud83d"'),
    "the other half": data(rb'"\ude00x"'),
    "half of a letter as a name": data(rb'{"\ud83d":1}'),
    "half of a letter as a type": b'{"type":"\\ud800","data":{}}',
    "half of a letter as an id": note(rb'"id":"\udfff"'),
    "not UTF-8": data(b'"\xff"'),
    "UTF-8 of half a letter": data(b'"\xed\xa0\x80"'),
    "UTF-16": BODY.decode().encode("utf-16"),
    "a mark in front": b"\xef\xbb\xbf" + BODY,
    "a type that is null": b'{"type":null,"data":{}}',
    "an id that is null": note(b'"id":null'),
    "a status that is null": note(b'"status":null,"x":null'),
    "a moment that is null": note(b'"timestamp":null,"requestId":null'),
    "the server's type": b'{"type":"synap.closing","data":{}}',
    "the server's type, in escapes": b'{"type":"s\\u0079nap.x","data":{}}',
    "the server's type, the second time": b'{"type":"a","data":{},"type":"synap.a"}',
    "a room": note(b'"room":"user_2"'),
    "a cursor": note(b'"cursor":"x-5"'),
    "a room of a wrong type": note(b'"room":5,"cursor":null'),
    "a room in escapes": note(b'"roo\\u006d":"user_2"'),
    "a type that is a number": b'{"type":1,"data":{}}',
    "no type": b'{"typ":"a","data":{}}',
    "an empty type": b'{"type":"","data":{}}',
    "too long a type": b'{"type":"%b","data":{}}' % (b"a" * 129),
    "data that is a list": b'{"type":"a","data":[]}',
    "data that is null": b'{"type":"a","data":null}',
    "no data": b'{"type":"a","date":{}}',
    "an empty id": note(b'"id":""'),
    "an id that is a number": note(b'"id":5'),
    "too long an id": note(b'"id":"%b"' % (b"a" * 129)),
    "a status of its own": note(b'"status":"done"'),
    "a requestId that is a number": note(b'"requestId":5'),
    "no moment": note(b'"timestamp":"yesterday"'),
    "a moment without an offset": note(b'"timestamp":"2026-01-31T12:00:00"'),
    "a moment that is none": note(b'"timestamp":"2026-02-31T12:00:00Z"'),
    "a moment that is a number": note(b'"timestamp":1790000000'),
    "too deep": data(b"[" * 200 + b"]" * 200),
    "much too deep": data(b"[" * 20_000),
    "larger when it is written out": data(b"[" + b"1e15," * 40_000 + b"1]"),
    "over 256 KiB": data(b'"%b"' % (b"y" * 256 * 1024)),
    "over 1 MiB": data(b'"%b"' % (b"y" * MIB)),
}  # fmt: skip


def in_two_steps(content: bytes) -> str | None:
    """What the thorough way makes of it: the JSON that is stored, if it is a notification."""
    try:
        return encode_notification(decode_json(content), None, is_checked=False)[1]
    except RequestError:
        return None


def decoded(content: bytes) -> tuple[object, bool]:
    try:
        return decode_notification(content)
    except RequestError:
        return None, False


def alike(text: str | None) -> str | None:
    """Without the members generated for each: the id and the timestamp."""
    return None if text is None else MADE.sub('"_"', text)


MADE = re.compile(r'"[0-9a-f]{8}-[0-9a-f-]{27}"|"\d{4}-\d\d-\d\dT[\d:.]+Z"')


def assert_alike(content: bytes) -> bool:
    """Check that the one-pass decoder agrees with the two-pass one. Return whether it was used."""
    value, is_checked = decoded(content)
    if is_checked:
        try:
            quick = encode_notification(value, None, is_checked=True)[1]
        except RequestError:
            quick = None
        assert alike(quick) == alike(in_two_steps(content))
    return is_checked


@given(objects() | values.map(spelled))
def test_one_pass_agrees_with_two(text: str) -> None:
    assert_alike(text.encode())


@given(objects())
def test_only_wrong_and_null_members_take_two_passes(text: str) -> None:
    value = from_json(text)
    has_number_words = "NaN" in text or "Infinity" in text
    is_dropped = any(not isinstance(value.get(name, ""), str) for name in ("room", "cursor"))
    is_simple = None not in value.values() and not (has_number_words or is_dropped)
    if is_simple and in_two_steps(text.encode()):
        assert decode_notification(text.encode())[1]


@given(st.lists(objects(), max_size=3))
def test_a_batch_is_decoded_as_each_of_it(texts: list[str]) -> None:
    content = f'{{"x":1,"notifications":[{",".join(texts)}]}}'.encode()
    try:
        items, is_checked = decode_batch(content)
    except RequestError:
        assert not texts
        return
    assert len(items) == len(texts) > 0
    for item, text in zip(items, texts, strict=True):
        alone = from_json(text)
        if not is_checked:
            assert item == alone
            continue
        rooms = item.pop("rooms")
        assert rooms == alone.pop("rooms")
        value, is_checked_alone = decode_notification(to_json(alone))
        assert is_checked_alone
        assert to_json(item) == to_json(value)


@given(st.binary(max_size=40) | values.map(spelled).map(str.encode))
def test_bytes_that_are_no_object_are_no_notification(content: bytes) -> None:
    value, is_checked = decoded(content)
    assert isinstance(value, dict) or not is_checked


@pytest.mark.parametrize("name", ONE_PASS)
def test_takes_one_pass(name: str) -> None:
    assert assert_alike(ONE_PASS[name])
    assert in_two_steps(ONE_PASS[name]) is not None


@pytest.mark.parametrize("name", OTHERWISE)
def test_reports_what_is_wrong_or_accepts_it_in_two_passes(name: str) -> None:
    assert_alike(OTHERWISE[name])
