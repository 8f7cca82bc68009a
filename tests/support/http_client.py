"""Requests of a room server, with a credential."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support.credentials import bearer

NOTE = {"type": "a.completed", "data": {}, "id": "n1"}


async def ask(
    url: str, method: str, path: str, credential: str | None = None, **options: Any
) -> httpx.Response:
    headers = {**options.pop("headers", {}), **(bearer(credential) if credential else {})}
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        return await client.request(method, path, **options)
