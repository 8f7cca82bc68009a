"""Take pictures of the demo: ``scripts/screenshots [FOLDER]``.

The demo runs as a user starts it. Chromium starts a report that fails twice and a message, and
takes a picture of each moment until both are done.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from .chromium import launch
from .pages import ROOT

FOLDER = ROOT / "docs" / "images"
MOVING = "demo.webp"
STILLS: dict[Literal["light", "dark"], str] = {
    "light": "demo-light.webp",
    "dark": "demo-dark.webp",
}

_SIZE: ViewportSize = {"width": 880, "height": 500}
_FRAME_S = 0.2
_LAST_FRAME_S = 3.0
_END_S = 60.0


@dataclass(frozen=True)
class Frame:
    """What the page showed, and for how long."""

    image: Image.Image
    duration_s: float


@contextmanager
def demo() -> Iterator[str]:
    """Run ``synap-realtime demo``; give the address of its page."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-m", "synap_realtime", "demo", "--port", "0", "--data", folder],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            lines = (re.search(r"^notes app +(\S+)", line) for line in process.stdout or ())
            yield next(found[1] for found in lines if found)
        finally:
            process.terminate()


@contextmanager
def opened(browser: Browser, url: str, mode: Literal["light", "dark"]) -> Iterator[Page]:
    """Open the page as a new user, once it is connected; toasts are there without a transition."""
    context = browser.new_context(viewport=_SIZE, color_scheme=mode, reduced_motion="reduce")
    page = context.new_page()
    page.goto(url)
    expect(page.get_by_role("status").first).to_have_text("live", timeout=1000 * _END_S)
    yield page
    context.close()


def start_jobs(page: Page) -> None:
    """Start a message and a report that fails twice."""
    page.get_by_label("Message").fill("How is my report?")
    page.get_by_role("button", name="Write with two failures").click()
    page.get_by_role("button", name="Send").click()


def is_done(page: Page) -> bool:
    """Return whether both jobs have ended."""
    return page.locator(".job[data-status=success]").count() == 2


def wait_for_retry(page: Page) -> None:
    """Wait until the report has failed."""
    retrying = page.locator(".job[data-status=retrying]")
    expect(retrying).to_be_visible(timeout=1000 * _END_S)


def film(page: Page, end: Callable[[Page], bool]) -> list[Frame]:
    """Take pictures of the jobs until an end, or for a minute.

    Equal pictures in a row become one frame.
    """
    begin = time.monotonic()
    shots = [(begin, page.screenshot())]
    start_jobs(page)
    while True:
        start = time.monotonic()
        has_ended = end(page) or start - begin > _END_S
        shot = page.screenshot()
        if shots[-1][1] != shot:
            shots.append((start, shot))
        if has_ended:
            break
        page.wait_for_timeout(1000 * max(0.0, start + _FRAME_S - time.monotonic()))
    ends = [at for at, _ in shots[1:]] + [shots[-1][0] + _LAST_FRAME_S]
    return [
        Frame(Image.open(io.BytesIO(shot)).convert("RGB"), end_s - at)
        for (at, shot), end_s in zip(shots, ends, strict=True)
    ]


def write_moving(frames: Sequence[Frame], path: Path) -> None:
    """Write an animated picture, which repeats."""
    first, *others = frames
    first.image.save(
        path, save_all=True, append_images=[frame.image for frame in others], loop=0,
        duration=[round(1000 * frame.duration_s) for frame in frames],
        lossless=True, quality=100, method=4, minimize_size=True,
    )  # fmt: skip


def take(
    folder: Path,
    end: Callable[[Page], bool] = is_done,
    wait: Callable[[Page], None] = wait_for_retry,
) -> None:
    """Take all pictures.

    Args:
        folder: where to. It is made if it is missing.
        end: says when the moving picture ends.
        wait: waits for the moment of the other ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, launch(playwright) as browser, demo() as url:
        with opened(browser, url, "light") as page:
            frames = film(page, end)
        write_moving(frames, folder / MOVING)
        for mode, name in STILLS.items():
            with opened(browser, url, mode) as page:
                start_jobs(page)
                wait(page)
                shot = page.screenshot()
            Image.open(io.BytesIO(shot)).convert("RGB").save(
                folder / name, lossless=True, quality=100, method=6
            )


def main() -> None:
    """Take the pictures into the folder of the command line, by default docs/images/."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    take(folder)
    for path in sorted(folder.glob("*.webp")):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
