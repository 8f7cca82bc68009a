"""Store contents as files: in a folder by default, in S3 and others by URL (obstore)."""

from __future__ import annotations

from datetime import timedelta

import obstore
from obstore.store import ObjectStore, from_url


class ObjectStorage:
    """Objects that the app serves at ``{app_url}/files/{path}``."""

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
