"""WebSocket frames of notifications, encoded once for all subscribers."""

from __future__ import annotations

from ..stores.base import Entry
from ..ws_codec import text_frame


class _Last:
    entry: Entry | None = None
    frame = b""


_last = _Last()


def encode_entry_frame(entry: Entry) -> bytes:
    """Return the WebSocket frame of a notification. The last frame is cached."""
    if entry is not _last.entry:
        _last.entry, _last.frame = entry, text_frame(entry.text.encode())
    return _last.frame
