"""Store contents as files: in a folder by default, in S3 and others by URL (obstore)."""

from __future__ import annotations

from datetime import timedelta

import obstore
from obstore.store import ObjectStore, from_url

from synap_realtime import JobError
from synap_realtime.handlers import Storage


class ObjectStorage:
    """A :class:`Storage` whose files are served at ``{app_url}/files/{path}``."""

    def __init__(self, url: str, app_url: str) -> None:
        self._app_url = app_url
        if url.startswith("file:"):
            self._store: ObjectStore = from_url(url, mkdir=True)
        else:
            # The job is retried, so the store's own retries would only delay the user.
            patience = timedelta(seconds=5)
            self._store = from_url(url, retry_config={"max_retries": 1, "retry_timeout": patience})

    async def put(self, path: str, content: bytes, content_type: str) -> str:
        attributes = {} if self._is_folder else {"Content-Type": content_type}
        await obstore.put_async(self._store, path, content, attributes=attributes)
        return f"{self._app_url}/files/{path}"

    async def get(self, path: str) -> bytes | None:
        if any(part in ("", ".", "..") for part in path.split("/")):
            return None
        try:
            result = await obstore.get_async(self._store, path)
        except FileNotFoundError:
            return None
        return bytes(await result.bytes_async())

    @property
    def _is_folder(self) -> bool:
        return type(self._store).__name__ == "LocalStore"  # a folder stores no content types


class TroubledStorage:
    """A storage with simulated failures, so that the page can show retries and failures.

    Content with ``#fail-twice`` fails on its first two attempts, content with ``#fail-always`` on
    each.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._refused: dict[str, int] = {}

    async def put(self, path: str, content: bytes, content_type: str) -> str:
        if b"#fail-always" in content:
            raise JobError("The storage rejected this note because it contains #fail-always.")
        if b"#fail-twice" in content and self._refused.setdefault(path, 0) < 2:
            self._refused[path] += 1
            raise JobError("The storage is busy.")
        self._refused.pop(path, None)
        return await self._storage.put(path, content, content_type)
