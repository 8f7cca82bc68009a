"""Start Chromium, which draws the diagrams and takes the screenshots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--disable-background-networking", "--disable-gpu", "--no-first-run")


@contextmanager
def launch(playwright: Playwright) -> Iterator[Browser]:
    """Start the system's Chromium, or Playwright's own where there is none."""
    executable = next(filter(None, map(shutil.which, _NAMES)), None)
    # Chromium's sandbox does not work for root, who runs containers of CI.
    flags = [*_FLAGS, "--no-sandbox"] if os.geteuid() == 0 else [*_FLAGS]
    browser = playwright.chromium.launch(executable_path=executable, args=flags)
    try:
        yield browser
    finally:
        browser.close()
