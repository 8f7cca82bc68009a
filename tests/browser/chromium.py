"""Starts Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Error, async_playwright

FLAGS = (
    "--disable-background-networking", "--disable-component-update", "--disable-gpu",
    "--disable-quic", "--disable-sync", "--no-first-run",
)  # fmt: skip


@asynccontextmanager
async def launched(*flags: str, **options: Any) -> AsyncIterator[Browser]:
    """A browser of its own.

    Args:
        flags: more of its command line.
        options: of Playwright's ``launch``.
    """
    args = [*FLAGS, *flags]
    if os.geteuid() == 0:
        args.append("--no-sandbox")  # root has no sandbox
    async with async_playwright() as playwright:
        try:
            found = await playwright.chromium.launch(
                executable_path=_executable(), args=args, **options
            )
        except Error as error:
            pytest.fail(f"Chromium does not start (scripts/setup dev gets it): {error}")
        yield found
        await found.close()


def _executable() -> str | None:
    """The system's; None: Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)
