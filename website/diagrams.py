"""Render the Mermaid diagrams of the pages, once for light and once for dark mode.

A diagram is a fenced block in a page, so that it can be read and changed as text. It needs an
``accTitle``, which is its description for those who cannot see it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import relpath

from playwright.sync_api import Page, sync_playwright

from .chromium import launch
from .pages import ROOT

_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^\s*accTitle:\s*(.+)$", re.MULTILINE)
_THEMES = {"light": "neutral", "dark": "dark"}
_MERMAID = ROOT / "website" / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"


class DiagramError(Exception):
    """A diagram is wrong; names the page."""


def render_diagrams(folder: Path) -> None:
    """Replace the diagrams of all pages by images.

    Args:
        folder: the pages. The images are written into ``diagrams/``.

    Raises:
        DiagramError: a diagram has no description, or Mermaid rejects it.
    """
    pages = [path for path in sorted(folder.rglob("*.md")) if _BLOCK.search(path.read_text())]
    if not pages:
        return
    images = folder / "diagrams"
    images.mkdir(exist_ok=True)
    with sync_playwright() as playwright, launch(playwright) as browser:
        page = browser.new_page()
        page.add_script_tag(path=_MERMAID)
        for path in pages:
            try:
                text = "".join(_with_images(path, folder, page))
            except Exception as error:
                raise DiagramError(f"{path.relative_to(folder)}: {error}") from error
            path.write_text(text)


def _with_images(path: Path, folder: Path, page: Page) -> Iterator[str]:
    text, done = path.read_text(), 0
    up = relpath(folder, path.parent)
    for block in _BLOCK.finditer(text):
        title = _TITLE.search(block[1])
        if title is None:
            raise DiagramError(f"a diagram has no accTitle: {block[1].strip().splitlines()[0]}")
        name = hashlib.sha256(block[1].encode()).hexdigest()[:12]
        yield text[done : block.start()]
        for mode, theme in _THEMES.items():
            file = folder / "diagrams" / f"{name}-{mode}.svg"
            file.write_text(_render(page, block[1], theme, f"d{name}"))
            yield f"![{title[1]}]({up}/diagrams/{file.name}#only-{mode}){{ .diagram }}\n"
        done = block.end()
    yield text[done:]


def _render(page: Page, code: str, theme: str, id: str) -> str:
    """Return an SVG document."""
    svg: str = page.evaluate(
        """async ([code, theme, id]) => {
            mermaid.initialize({
                startOnLoad: false, theme, securityLevel: "strict", htmlLabels: false,
                flowchart: { htmlLabels: false }, fontFamily: "system-ui, sans-serif",
            });
            return (await mermaid.render(id, code)).svg;
        }""",
        [code, theme, id],
    )
    return svg
