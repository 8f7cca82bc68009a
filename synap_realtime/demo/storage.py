"""Store contents as files, and simulate the failures of a storage."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ..errors import JobError
from ..handlers import Storage


class Folder:
    """Files in a folder."""

    def __init__(self, folder: Path, app_url: str) -> None:
        self._folder = folder
        self._app_url = app_url

    async def put(self, path: str, content: bytes, content_type: str) -> str:  # noqa: ARG002 - a folder keeps no content types
        """See :class:`Storage`."""
        await asyncio.to_thread(self._write, path, content)
        return f"{self._app_url}/files/{path}"

    async def get(self, path: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        return await asyncio.to_thread(self._read, path)

    def _write(self, path: str, content: bytes) -> None:
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def _read(self, path: str) -> bytes | None:
        # The path comes from a URL: it must not lead out of the folder.
        if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            return None
        try:
            return (self._folder / path).read_bytes()
        except OSError:  # there is no such file, or it is a folder
            return None


class TroubledStorage:
    """A storage with simulated failures, so that the page can show retries and failures.

    Content with ``#fail-twice`` fails on its first two attempts, content with ``#fail-always`` on
    each.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._refused: dict[str, int] = {}

    async def put(self, path: str, content: bytes, content_type: str) -> str:
        """See :class:`Storage`."""
        if b"#fail-always" in content:
            raise JobError("The storage rejected this note because it contains #fail-always.")
        if b"#fail-twice" in content and self._refused.setdefault(path, 0) < 2:
            self._refused[path] += 1
            raise JobError("The storage is busy.")
        self._refused.pop(path, None)
        return await self._storage.put(path, content, content_type)
