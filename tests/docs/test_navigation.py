"""Each page is in the navigation, and each link between pages leads to a heading that exists."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from posixpath import normpath

import pytest

from website.pages import ROOT, sources

from .headings import FENCE, anchors

NAV = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
PAGES = sources()


def entries(section: object) -> Iterator[str]:
    """Return the pages of a part of the navigation."""
    match section:
        case str():
            yield section
        case list():
            for each in section:
                yield from entries(each)
        case dict():
            for each in section.values():
                yield from entries(each)


def test_each_page_is_in_the_navigation_once() -> None:
    # The records of decisions are listed by their index.
    pages = {page for page in PAGES.values() if not re.match(r"adr/\d", page)}
    assert sorted(entries(NAV)) == sorted(pages)


@pytest.mark.parametrize("file", PAGES)
def test_links_lead_to_files_and_headings_that_exist(file: str) -> None:
    text = FENCE.sub("", (ROOT / file).read_text())
    for path, anchor in LINK.findall(text):
        target = normpath(f"{file}/../{path}") if path else file
        assert (ROOT / target).exists(), f"{path} does not exist"
        if anchor and target in PAGES:
            assert anchor in anchors(target), f"{path}#{anchor}"
