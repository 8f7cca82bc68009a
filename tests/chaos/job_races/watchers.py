"""Chromium, whose page follows the jobs of a wave: ``useJob`` for each, ``useJobs`` for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Browser, Error

from tests.support.timeouts import TIMEOUT_S

from ...browser.chromium import launched
from ...browser.pages import bundle, site

ARE_OVER = """([ids]) => ids.every((id) => ["success", "error"].includes(seen[id]?.status)
  && ["completed", "failed", "cancelled"].includes(listed[id]))"""


@dataclass(frozen=True, slots=True)
class Watched:
    """What a page has shown.

    Attributes:
        seen: by request, the last status and text of ``useJob``.
        listed: by request, the last status in ``useJobs``.
        faults: what must not be shown at all.
    """

    seen: Mapping[str, tuple[str, str]]
    listed: Mapping[str, str]
    faults: list[str]


@dataclass(frozen=True, slots=True)
class Watchers:
    browser: Browser
    origin: str

    async def watch(self, url: str, user: str, delays_s: Mapping[str, float]) -> Watched:
        """Follow jobs to their ends, each after a delay in seconds."""
        page = await self.browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        await page.goto(f"{self.origin}/page.html")
        delays_ms = {id_: delay_s * 1000 for id_, delay_s in delays_s.items()}
        await page.evaluate("([url, user, delays]) => follow(url, user, delays)", [
            url, user, delays_ms,
        ])  # fmt: skip
        try:
            await page.wait_for_function(ARE_OVER, arg=[list(delays_s)], timeout=TIMEOUT_S * 1000)
        except Error as error:
            faults.append(f"the page is stuck: {error.message.splitlines()[0]}")
        found = await page.evaluate("({ seen, listed, faults })")
        await page.close()
        return Watched(
            {id_: (each["status"], each["text"]) for id_, each in found["seen"].items()},
            found["listed"],
            faults + found["faults"],
        )


@asynccontextmanager
async def watchers(folder: Path) -> AsyncIterator[Watchers]:
    """Start Chromium."""
    bundle("../chaos/job_races/page.tsx", folder / "page")
    with site(folder) as origin:
        async with launched() as browser:
            yield Watchers(browser, origin)
