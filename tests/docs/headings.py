"""The headings of a page, and the anchors that the site gives them."""

from __future__ import annotations

import re

from website.pages import ROOT

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(file: str) -> set[str]:
    """Return the anchors of the headings of a file, as the site has them."""
    text = FENCE.sub("", (ROOT / file).read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", each).strip().lower()) for each in headings
    }
