"""The checks before a release: ``scripts/release [--dry-run]``.

Each check names what is missing and the fix. Without ``--dry-run``, and if all pass, the commit is
tagged. The workflow ``.github/workflows/release.yml`` publishes what it builds from a tag.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

from .build import build
from .project import ROOT, ReleaseError, other_versions, version

Problems = Iterator[str]

_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?")
_HEADING = re.compile(r"^## (\S+) - \d{4}-\d{2}-\d{2}$", re.MULTILINE)


def check_versions() -> Problems:
    """Check that the version is valid, and the same everywhere."""
    present = version()
    if not _SEMVER.fullmatch(present):
        yield f"synap_realtime/__init__.py: {present!r} is not a semantic version (1.2.3)"
    for place, found in other_versions().items():
        if found != present:
            yield f"{place} has {found!r}; the package has {present!r}: write that"


def check_changelog() -> Problems:
    """Check that the newest section of the changelog is this version's, with a date."""
    text = (ROOT / "CHANGELOG.md").read_text()
    first = re.search(r"^## .+$", text, re.MULTILINE)
    found = _HEADING.fullmatch(first[0]) if first else None
    expected = f"## {version()} - {date.today().isoformat()}"  # noqa: DTZ011 - the author's day
    if found is None:
        yield f"CHANGELOG.md: the first section has no date; write {expected!r}"
    elif found[1] != version():
        yield f"CHANGELOG.md: the first section is of {found[1]}; write {expected!r}"


def check_upgrading() -> Problems:
    """Check that UPGRADING.md has a section of this version, if it may break something."""
    major, minor, patch = version().partition("-")[0].split(".")
    breaks = patch == "0" if major == "0" else (minor, patch) == ("0", "0")
    headings = re.findall(r"^## To (\S+)", (ROOT / "UPGRADING.md").read_text(), re.MULTILINE)
    wanted = f"{major}.{minor}" if major == "0" else major
    if breaks and wanted not in headings:
        yield f"UPGRADING.md: no section '## To {wanted}'; say what to change, or that nothing is"


def check_commit() -> Problems:
    """Check that what is released is a commit of main without a tag of this version."""
    if _git("status", "--porcelain"):
        yield "the working tree has changes: commit or remove them"
    if (branch := _git("branch", "--show-current")) != "main":
        yield f"the branch is {branch or 'none'}: check out main"
    if _git("tag", "--list", f"v{version()}"):
        yield f"the tag v{version()} exists: raise the version"


def check_artifacts() -> Problems:
    """Check that all artifacts can be built."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            build(Path(folder))
        except ReleaseError as error:
            yield str(error)


CHECKS: tuple[Callable[[], Problems], ...] = (
    check_versions, check_changelog, check_upgrading, check_commit, check_artifacts,
)  # fmt: skip


def run(checks: tuple[Callable[[], Problems], ...] = CHECKS) -> bool:
    """Run all checks, and print a line for each. Return whether all have passed."""
    has_passed = True
    for check in checks:
        problems = list(check())
        print(f"{'missing' if problems else 'ok':<8} {(check.__doc__ or '').splitlines()[0]}")
        for problem in problems:
            print(f"         {problem}")
        has_passed = has_passed and not problems
    return has_passed


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ReleaseError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> None:
    """Check; then tag the commit, unless ``--dry-run`` is given."""
    if unknown := [each for each in sys.argv[1:] if each != "--dry-run"]:
        sys.exit(
            f"scripts/release: unknown argument {unknown[0]!r}; usage: scripts/release [--dry-run]"
        )
    try:
        if not run():
            sys.exit("scripts/release: not ready; see the lines marked 'missing'")
        if "--dry-run" not in sys.argv:
            _git("tag", "--annotate", f"v{version()}", "--message", f"Release {version()}")
            print(f"\nTagged. To publish: git push origin v{version()}")
    except ReleaseError as error:
        sys.exit(f"scripts/release: {error}")


if __name__ == "__main__":
    main()
