"""Publishing notifications with ``fold``, and a client that applies them."""

from __future__ import annotations

import json
from typing import Any

from synap_realtime.protocol.folding import Fold, Mode, make_fold
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Publication, PublishResult, Store

from .stores import USER


def folded(id: str, fold: Fold, room: Room = USER, **data: Any) -> Publication:
    """Return a notification as the publish routes hand it to a store."""
    content = {**data, "delta": fold.piece} if fold.mode == "append" else data
    wire = {"type": "a", "id": id, "data": content, "fold": fold.to_wire()}
    return Publication(room, id, json.dumps(wire, ensure_ascii=False), None, fold)


async def write(
    store: Store,
    id: str,
    mode: Mode = "append",
    piece: str = "",
    *,
    key: str = "k",
    room: Room = USER,
    data: dict[str, Any] | None = None,
    **members: Any,
) -> PublishResult:
    """Publish one notification with ``fold``."""
    fold = make_fold(key, mode, piece, **members)
    (result,) = await store.publish([folded(id, fold, room, **(data or {}))])
    return result


class Texts:
    """The texts of a subscriber's keys: PROTOCOL.md, "Folding".

    Attributes:
        by_key: the text of each key.
    """

    def __init__(self) -> None:
        self.by_key: dict[str, str] = {}

    def apply(self, wire: dict[str, Any]) -> None:
        """Apply a notification that was delivered.

        Raises:
            AssertionError: a piece is missing.
        """
        fold = wire.get("fold")
        if fold is None or fold["mode"] == "replace":
            return
        text, offset = self.by_key.get(fold["key"], ""), fold["offset"]
        assert offset <= len(text), f"a gap: {offset} follows {len(text)}"
        self.by_key[fold["key"]] = text[:offset] + wire["data"]["delta"]


class FoldingClient:
    """A client that applies what it receives by both versions of the protocol.

    Attributes:
        after: the last cursor that it has received.
        texts: what it shows by ``fold.offset``.
        indexed: what a client of version 1 shows by ``data.index``: text and the next index, for
            the texts whose beginning this connection has received.
        replaced: the last id of each key with the mode ``replace``.
        ids: of ordinary notifications.
    """

    def __init__(self) -> None:
        self.after = "earliest"
        self.texts = Texts()
        self.indexed: dict[str, tuple[str, int]] = {}
        self.replaced: dict[str, str] = {}
        self.ids: list[str] = []

    def receive(self, wire: dict[str, Any]) -> None:
        """Apply a notification that was delivered.

        Raises:
            AssertionError: a piece is missing, by its offset or by its index.
        """
        self.after = wire["cursor"]
        fold = wire.get("fold")
        if fold is None:
            self.ids.append(wire["id"])
            return
        self.texts.apply(wire)
        if fold["mode"] == "replace":
            self.replaced[fold["key"]] = wire["id"]
            return
        key, index, delta = fold["key"], wire["data"]["index"], wire["data"]["delta"]
        if index == 0:
            self.indexed[key] = (delta, 1)
        elif key in self.indexed:
            text, expected = self.indexed[key]
            assert index == expected, "a client of version 1 misses a piece"
            self.indexed[key] = (text + delta, index + 1)
