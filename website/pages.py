"""Which files of the repository are pages of the site, and where.

A file of ``docs/`` keeps its path. Other files are listed in :data:`PAGES`. The navigation is in
``zensical.toml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

ROOT = Path(__file__).resolve().parent.parent

REPOSITORY = "https://github.com/synap-realtime/synap-realtime"

PAGES: Mapping[str, str] = {
    "PROTOCOL.md": "reference/protocol.md",
    "benchmarks/results.md": "reference/benchmarks.md",
    "browser/README.md": "reference/browser.md",
    "CHANGELOG.md": "reference/changelog.md",
    "UPGRADING.md": "reference/upgrading.md",
    "SECURITY.md": "operations/security.md",
    "deploy/README.md": "operations/deploy.md",
    "deploy/helm/synap-realtime/README.md": "operations/helm.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""From a file outside ``docs/`` to its page."""

_ASSETS = {".css", ".js", ".png", ".svg", ".webp"}
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^(```|~~~)", re.MULTILINE)


def sources() -> dict[str, str]:
    """Return the path of each page on the site, by the path of its file in the repository."""
    own = {
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "docs").as_posix()
        for path in sorted((ROOT / "docs").rglob("*.md"))
    }
    return {**{file: _page(page) for file, page in own.items()}, **PAGES}


def rewrite_links(text: str, file: str, pages: Mapping[str, str]) -> str:
    """Return the text of a file with links that are right on the site.

    A link to another page, or to an asset of ``docs/``, leads there; one to any other file leads to
    the repository.

    Args:
        text: Markdown.
        file: its path in the repository.
        pages: see :func:`sources`.
    """
    here = PurePosixPath(pages[file]).parent.as_posix()

    def replace(found: re.Match[str]) -> str:
        target = normpath((PurePosixPath(file).parent / found[1]).as_posix())
        anchor = found[2] or ""
        if target in pages:
            return relpath(pages[target], here) + anchor
        if is_asset(ROOT / target):
            return relpath(target, f"docs/{here}") + anchor
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{target}{anchor}"

    parts = _FENCE.split(text)  # text, fence, code, fence, text, …
    return "".join(
        part if index % 4 else _LINK.sub(replace, part) for index, part in enumerate(parts)
    )


def is_asset(path: Path) -> bool:
    """Return whether a file is published as it is, with the pages that show it."""
    return path.is_relative_to(ROOT / "docs") and path.suffix in _ASSETS


def _page(path: str) -> str:
    """Return the path of a page: a README is the index of its folder."""
    return re.sub(r"README\.md$", "index.md", path)
