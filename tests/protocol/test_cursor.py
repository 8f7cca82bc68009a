"""Cursors are parsed only in the form in which they were written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap_realtime import InvalidArgumentError
from synap_realtime.protocol.cursor import Cursor, parse_cursor


@given(st.from_regex(r"[a-z0-9]{1,32}", fullmatch=True), st.integers(0, 10**18 - 1))
def test_a_cursor_is_read_as_it_was_written(epoch: str, offset: int) -> None:
    assert parse_cursor(str(Cursor(epoch, offset))) == (epoch, offset)


@pytest.mark.parametrize("text", ["", "7", "a-", "-7", "a-7-8", "a--7", "a-7 ", "a-" + "9" * 19])
def test_other_text_is_not_a_cursor(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected a cursor"):
        parse_cursor(text)
