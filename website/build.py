"""Build the site: ``scripts/docs [FOLDER]``.

The pages are gathered into ``.site/``, with links that are right there. Zensical makes HTML of
them. Then each page gets its Markdown beside it, and ``llms.txt`` lists them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from .api import expand
from .diagrams import render_diagrams
from .pages import ROOT, is_asset, rewrite_links, sources

_WORK = ROOT / ".site"
_SHIM = "https://unpkg.com/iframe-worker/shim"


class SiteError(Exception):
    """The site cannot be built."""


def build(folder: Path) -> None:
    """Build the site into a folder, which is replaced.

    Raises:
        SiteError: a link is dead, a diagram is wrong, or Zensical failed.
    """
    gather(_WORK / "docs")
    render_diagrams(_WORK / "docs")
    _run_zensical()
    publish_markdown(_WORK / "site")
    write_llms(_WORK / "site")
    remove_network(_WORK / "site")
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(_WORK / "site", folder)


def gather(folder: Path) -> None:
    """Copy all pages into one folder, and what they show."""
    if folder.exists():
        shutil.rmtree(folder)
    pages = sources()
    for file, page in pages.items():
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(rewrite_links((ROOT / file).read_text(), file, pages))
    for asset in sorted((ROOT / "docs").rglob("*")):
        if is_asset(asset):
            target = folder / asset.relative_to(ROOT / "docs")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(asset, target)
    shutil.copytree(ROOT / "website" / "theme", folder / "theme")


def publish_markdown(site: Path) -> None:
    """Put the Markdown of each page beside it, with its diagrams as text."""
    pages = sources()
    for file, page in pages.items():
        text = rewrite_links((ROOT / file).read_text(), file, pages)
        (site / page).write_text(expand(text))


def write_llms(site: Path) -> None:
    """List the pages for language models, in the order of the navigation (llmstxt.org)."""
    project = _project()
    lines = [f"# {project['site_name']}", "", f"> {project['site_description']}", ""]
    for section in project["nav"]:
        ((title, entries),) = section.items()
        lines.append(f"## {title}\n")
        entries = [{title: entries}] if isinstance(entries, str) else entries
        lines += [_llms_line(entry, project["site_url"]) for entry in entries]
        lines.append("")
    (site / "llms.txt").write_text("\n".join(lines))


def remove_network(site: Path) -> None:
    """Replace what a page would load from elsewhere by a copy of it."""
    shim = ROOT / "website" / "node_modules" / "iframe-worker" / "shim" / "index.js"
    local = site / "assets" / "javascripts" / "iframe-worker.js"
    shutil.copyfile(shim, local)
    for page in site.rglob("*.html"):
        text = page.read_text()
        if _SHIM in text:
            up = "../" * (len(page.relative_to(site).parts) - 1)
            page.write_text(text.replace(_SHIM, f"{up}{local.relative_to(site).as_posix()}"))


def _llms_line(entry: dict[str, str], url: str) -> str:
    ((title, page),) = entry.items()
    return f"- [{title}]({url}{page})"


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    return project


def _run_zensical() -> None:
    program = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [program, "build", "--strict", "--clean", "-f", ROOT / "zensical.toml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SiteError(f"{done.stdout}{done.stderr}".strip())


def main() -> None:
    """Build into the folder of the command line, by default ``site``."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site"
    try:
        build(folder.resolve())
    except SiteError as error:
        sys.exit(f"scripts/docs: {error}")
    print(f"{folder}: {sum(1 for _ in folder.rglob('*.html'))} pages; open index.html")


if __name__ == "__main__":
    main()
