"""``docs/threat-model.md``: each defence names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "threat-model.md"
DEFENDED = PAGE.read_text().split("## Defended")[1].split("## Not defended")[0]
ROWS = [line for line in DEFENDED.splitlines() if line.startswith("| ")][2:]


def test_there_are_rows() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row).split("|")[1].strip())
def test_each_defence_is_shown_by_tests_that_exist(row: str) -> None:
    shown = re.findall(r"\[`(test_\w+)`\]\((\S+?)\)", row)
    assert shown
    for name, file in shown:
        text = (PAGE.parent / file).read_text()
        assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), f"{name} of {file}"


@pytest.mark.parametrize(
    ("file", "name"),
    re.findall(r'`(\w+\.test\.ts)` "([^"]+)"', PAGE.read_text().split("## On Cloudflare")[1]),
)
def test_each_defence_of_the_worker_is_shown_by_a_test_that_exists(file: str, name: str) -> None:
    text = (PAGE.parents[1] / "worker" / "tests" / file).read_text()
    assert f'test("{name}"' in text


ROOT = PAGE.parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "deploy" / "README.md"]


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in sorted(PAGES)])
def test_links_between_files_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
        assert (file.parent / target).exists(), target
