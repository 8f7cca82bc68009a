"""The writer, and a plain model of what every client has to show at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

RETENTION = 16
"""Notifications that a room keeps, so that steps push others out of its log."""
MAX_TEXT_BYTES = 1024 * 1024 - 1024
MARGIN_BYTES = 2048
"""Of the limit: for the members of a notification beside its text."""

TEXT_KEYS = ("text-a", "text-b")
STATE_KEY = "state"
KEYS = (*TEXT_KEYS, STATE_KEY)


@dataclass
class Key:
    """A key of a room, in the model.

    Attributes:
        text: of an ``append`` key; what its pieces were joined to.
        value: of the ``replace`` key; its last write.
        shown: what clients show: the text until a later one begins.
        last: the offset and the piece of the last write.
        newer: notifications of the room after the last write that are not folded.
    """

    attempt: int = 0
    text: str = ""
    value: int = -1
    pieces: int = 0
    shown: str = ""
    is_open: bool = False
    last: tuple[int, str] | None = None
    newer: int = 0

    @property
    def is_retained(self) -> bool:
        """Whether the log has it for sure; else the server may have deleted it, or not yet."""
        return self.newer + len(KEYS) < RETENTION


@dataclass
class RoomModel:
    name: str
    keys: dict[str, Key] = field(default_factory=lambda: {key: Key() for key in KEYS})
    plain: int = 0
    """Notifications without ``fold``; their ids are ``n1``, ``n2``, …"""


class Writer:
    """Writes to rooms, each write until it is answered, and checks the answer against the model."""

    def __init__(self, url: str, rooms: tuple[str, ...]) -> None:
        self.rooms = {name: RoomModel(name) for name in rooms}
        self._writes = 0
        self._http = httpx.AsyncClient(base_url=url, timeout=20, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def append(self, room: str, name: str, pieces: list[str], *, final: bool = False) -> None:
        """Append pieces, in one batch."""
        key = self.rooms[room].keys[name]
        batch, offset, index = [], len(key.text), key.pieces
        for number, piece in enumerate(pieces):
            is_final = final and number == len(pieces) - 1
            batch.append(self._piece(room, name, piece, offset, index, final=is_final))
            offset, index = offset + len(piece), index + 1
        results = await self._batch(batch)
        for number, (piece, result) in enumerate(zip(pieces, results, strict=True)):
            is_final = final and number == len(pieces) - 1
            code = result.get("code")
            if code == "payload_too_large":
                size = len(json.dumps(key.text + piece, ensure_ascii=False).encode())
                assert size > MAX_TEXT_BYTES - MARGIN_BYTES, result
                return
            if code == "offset_mismatch" and not key.is_retained:
                # The key is gone. A publisher that has the text begins again with it.
                assert result["offset"] == 0, result
                await self._begin_again(room, name, pieces[number:], final=final)
                return
            assert code is None, result
            assert not result.get("duplicate"), result
            self._apply(room, name, key.text + piece, piece, final=is_final)

    async def _begin_again(self, room: str, name: str, pieces: list[str], *, final: bool) -> None:
        key = self.rooms[room].keys[name]
        text = key.text + "".join(pieces)
        key.text, key.pieces = "", 0
        if len(text) > 100_000:  # a write is at most 256 KiB
            text = text[-100:]
        result = await self._one(self._piece(room, name, text, 0, 0, final=final))
        assert result.get("code") is None, result
        self._apply(room, name, text, text, final=final)

    def _apply(self, room: str, name: str, text: str, piece: str, *, final: bool) -> None:
        model = self.rooms[room]
        key = model.keys[name]
        key.last = None if final else (len(text) - len(piece), piece)
        key.text, key.shown, key.pieces = text, text, key.pieces + 1
        key.is_open, key.newer = not final, 0
        if final:
            key.text, key.pieces = "", 0
            self._grow(room, except_for=name)  # from now on it is an ordinary notification

    async def retry(self, room: str, name: str, piece: str) -> None:
        """Begin the next attempt."""
        key = self.rooms[room].keys[name]
        key.attempt += 1
        result = await self._one(self._piece(room, name, piece, 0, 0))
        assert result.get("code") is None, result
        key.text, key.pieces = "", 0
        self._apply(room, name, piece, piece, final=False)

    async def replace(self, room: str, *, final: bool = False) -> None:
        key = self.rooms[room].keys[STATE_KEY]
        key.value += 1
        fold = {"key": STATE_KEY, "mode": "replace", "attempt": key.attempt, "final": final}
        result = await self._one(self._notification(room, {"value": key.value}, fold))
        assert result.get("code") is None, result
        key.is_open, key.newer = not final, 0
        if final:
            self._grow(room, except_for=STATE_KEY)

    async def publish(self, room: str, count: int) -> None:
        """Publish notifications without ``fold``."""
        model = self.rooms[room]
        batch = []
        for _ in range(count):
            model.plain += 1
            batch.append({"rooms": [room], "type": "t.plain", "id": f"n{model.plain}", "data": {}})
            self._grow(room)
        for result in await self._batch(batch):
            assert result.get("code") is None, result

    async def end(self, room: str) -> None:
        """Publish the last notification."""
        end = {"rooms": [room], "type": "t.end", "id": "end", "data": {}}
        assert (await self._one(end)).get("code") is None

    async def repeat(self, room: str, name: str) -> None:
        """Send the last piece again: it has no effect."""
        key = self.rooms[room].keys[name]
        if key.last is None or not key.is_retained:
            return
        result = await self._one(self._piece(room, name, key.last[1], key.last[0], 0))
        assert result.get("duplicate") is True, result

    async def write_beyond_the_end(self, room: str, name: str) -> None:
        key = self.rooms[room].keys[name]
        result = await self._one(self._piece(room, name, "beyond", len(key.text) + 3, 0))
        assert result["code"] == "offset_mismatch", result
        if key.is_retained:
            assert result["offset"] == len(key.text), result

    async def write_as_zombie(self, room: str, name: str) -> None:
        """Write as an earlier attempt that does not know that it was given up."""
        key = self.rooms[room].keys[name]
        if key.attempt == 0 or not key.is_retained:
            return
        zombie = self._piece(room, name, "zombie", None, 0)
        zombie["fold"]["attempt"] -= 1
        result = await self._one(zombie)
        assert (result["code"], result["attempt"]) == ("stale_attempt", key.attempt), result

    async def change_mode(self, room: str, name: str) -> None:
        key = self.rooms[room].keys[name]
        if not key.is_open or not key.is_retained:
            return
        fold = {"key": name, "mode": "replace", "attempt": key.attempt}
        result = await self._one(self._notification(room, {}, fold))
        assert result["code"] == "fold_mode", result

    def _grow(self, room: str, except_for: str = "") -> None:
        for name, key in self.rooms[room].keys.items():
            if name != except_for:
                key.newer += 1

    def _piece(
        self, room: str, name: str, piece: str, offset: int | None, index: int, final: bool = False
    ) -> dict[str, Any]:
        attempt = self.rooms[room].keys[name].attempt
        fold = {"key": name, "mode": "append", "attempt": attempt, "offset": offset}
        data = {"delta": piece, "index": index, "key": name}
        return self._notification(room, data, {**fold, "final": final})

    def _notification(
        self, room: str, data: dict[str, Any], fold: dict[str, Any]
    ) -> dict[str, Any]:
        self._writes += 1
        id_ = f"w{self._writes}"
        return {"rooms": [room], "type": "t.write", "id": id_, "data": data, "fold": fold}

    async def _one(self, notification: dict[str, Any]) -> dict[str, Any]:
        return (await self._batch([notification]))[0]

    async def _batch(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        response = await self._http.post("/broadcast", json={"notifications": batch})
        return [
            next(iter(result["rooms"].values())) if "rooms" in result else result
            for result in response.json()["results"]
        ]
