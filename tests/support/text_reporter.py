"""A program that publishes a text in pieces, as the SDK does, through failures of the store."""

from __future__ import annotations

import asyncio

from synap_realtime.protocol.folding import make_fold
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Store

from .folding import folded
from .timeouts import TIMEOUT_S


class TextReporter:
    """Publishes a text under the key ``k``. It repeats what was not answered.

    Attributes:
        length: how much of the text was acknowledged.
        mismatches: the offsets from which it had to publish again.
        refused: how many publishes were refused.
    """

    def __init__(self, store: Store, room: Room, text: str) -> None:
        self.length = 0
        self.mismatches: list[int] = []
        self.refused = 0
        self._store = store
        self._room = room
        self._text = text

    async def publish_to(self, end: int) -> None:
        """Publish the text up to an offset."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.length < end:
                await self._publish_piece(min(self.length + 4, end))

    async def _publish_piece(self, end: int) -> None:
        fold = make_fold("k", "append", self._text[self.length : end], offset=self.length)
        try:
            (result,) = await self._store.publish([folded(f"p{self.length}", fold, self._room)])
        except StoreUnavailableError:
            self.refused += 1
            await asyncio.sleep(0.05)
            return
        if result.conflict is None:
            self.length = end
        else:
            assert result.conflict.code == "offset_mismatch"
            assert result.conflict.offset is not None
            self.length = result.conflict.offset
            self.mismatches.append(self.length)
