"""The built site, in a browser: its pages, its addresses, and what axe-core says about a page."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Page

from tests.support.npm import BROWSER

_AXE = (BROWSER / "node_modules/axe-core/axe.min.js").read_text()


class Document(HTMLParser):
    """The links of a page, and the anchors that links may lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links += [values[name] for name in ("href", "src") if name in values]


def dead_links(site: Path) -> Iterator[str]:
    """Give each link of a page that leads to no file or anchor of the site."""
    pages = {page: Document(page.read_text()) for page in sorted(site.rglob("*.html"))}
    for page, document in pages.items():
        for link in document.links:
            address = urlsplit(link)
            if address.scheme or address.netloc or page.name == "404.html":
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            anchor = unquote(address.fragment)
            found = target.is_file() and (
                not anchor
                or target not in pages
                or anchor in pages[target].anchors
                or anchor == "__comments"
            )
            if not found:
                yield f"{page.relative_to(site)}: {link}"


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve the site over HTTP; give its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def violations(page: Page, *rules: str) -> list[str]:
    """Return what axe-core finds on a page of at least serious impact.

    Args:
        page: an open page.
        rules: axe-core's names of rules; by default all.
    """
    page.evaluate(_AXE)
    found = page.evaluate(
        """(rules) => {
            const options = { resultTypes: ["violations"] };
            if (rules.length) options.runOnly = rules;
            return axe.run(document, options).then((all) => all.violations);
        }""",
        rules,
    )
    return [
        f"{each['id']}: {node['html'][:120]}: {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


CONTRASTS = """
(background) => {
  const shapes = "rect, path, polygon, circle, ellipse";
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => {
      const part = byte / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const filled = (element) => {
    const { fill, fillOpacity, opacity } = getComputedStyle(element);
    const opaque = ![fillOpacity, opacity].includes("0") && fill !== "none";
    return opaque && element.matches(shapes) && fill;
  };
  const texts = [...document.querySelectorAll("text")].filter((text) => text.textContent.trim());
  return texts.map((text) => {
    const box = text.getBoundingClientRect();
    const below = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const colour = getComputedStyle(text.querySelector("tspan tspan, tspan") ?? text).fill;
    const behind = below.map(filled).find(Boolean) || background;
    const [dark, light] = [luminance(colour), luminance(behind)].sort((a, b) => a - b);
    return [text.textContent.trim(), (light + 0.05) / (dark + 0.05)];
  });
}
"""
"""Of each text of an SVG document: the contrast with what is behind it. WCAG 2.2, section 1.4.3."""


def contrasts(page: Page, diagram: Path, background: str) -> dict[str, float]:
    """Return the contrast of each text of a diagram."""
    page.set_content(re.sub(r"^<\?xml.*?\?>", "", diagram.read_text()))
    return dict(page.evaluate(CONTRASTS, background))
