"""Render the Mermaid diagrams of the pages, once for light and once for dark mode.

A diagram is a fenced block in a page, so that it can be read and changed as text. It needs an
``accTitle``, which is its description for those who cannot see it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from posixpath import relpath

from playwright.sync_api import Page, sync_playwright

from .chromium import launch
from .pages import ROOT

_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^\s*accTitle:\s*(.+)$", re.MULTILINE)
_MERMAID = ROOT / "website" / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"


_LIGHT = {
    "background": "#ffffff",
    "text": "#1f2433",
    "line": "#566080",
    "box": "#eef1fb",
    "border": "#7a88b8",
    "group": "#f7f8fc",
    "note": "#fff4d1",
}
_DARK = {
    "background": "#0b0c0f",
    "text": "#e4e7f0",
    "line": "#98a3c7",
    "box": "#1d2338",
    "border": "#6472a6",
    "group": "#12151f",
    "note": "#3a3116",
}
_THEMES = {"light": _LIGHT, "dark": _DARK}


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
        shown = ""
        for mode, colours in _THEMES.items():
            file = folder / "diagrams" / f"{name}-{mode}.svg"
            svg, width = _render(page, block[1], colours, f"d{name}")
            file.write_text(svg)
            source = f"{up}/diagrams/{file.name}#only-{mode}"
            shown += f'<img src="{source}" alt="{escape(title[1])}">'
        yield f'<div class="diagram" style="--width: {width}px">{shown}</div>\n'
        done = block.end()
    yield text[done:]


def _render(page: Page, code: str, colours: Mapping[str, str], id: str) -> tuple[str, int]:
    """Return an SVG document, and its width in pixels where its text is as large as a page's."""
    svg, width = page.evaluate(
        """async ([code, themeVariables, id]) => {
            mermaid.initialize({
                startOnLoad: false, theme: "base", themeVariables, securityLevel: "strict",
                htmlLabels: false,
                flowchart: { htmlLabels: false, nodeSpacing: 30, rankSpacing: 40, padding: 10 },
                sequence: {
                    actorMargin: 24, width: 120, height: 44, boxMargin: 8, diagramMarginX: 8,
                },
            });
            const { svg } = await mermaid.render(id, code);
            const root = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement;
            return [svg, Math.ceil(root.viewBox.baseVal.width)];
        }""",
        [code, _variables(colours), id],
    )
    return str(svg), int(width)


def _variables(colours: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of Mermaid's theme "base"."""
    text, line, box, border = (colours[name] for name in ("text", "line", "box", "border"))
    return {
        "fontFamily": "system-ui, sans-serif",
        "fontSize": "15px",
        "background": colours["background"],
        "primaryColor": box,
        "primaryTextColor": text,
        "primaryBorderColor": border,
        "lineColor": line,
        "textColor": text,
        "edgeLabelBackground": colours["background"],
        "clusterBkg": colours["group"],
        "clusterBorder": border,
        "titleColor": text,
        "actorBkg": box,
        "actorBorder": border,
        "actorTextColor": text,
        "actorLineColor": border,
        "signalColor": line,
        "signalTextColor": text,
        "labelBoxBkgColor": box,
        "labelBoxBorderColor": border,
        "labelTextColor": text,
        "loopTextColor": text,
        "noteBkgColor": colours["note"],
        "noteBorderColor": border,
        "noteTextColor": text,
        "transitionColor": line,
        "transitionLabelColor": text,
        "stateLabelColor": text,
        "specialStateColor": line,
    }
