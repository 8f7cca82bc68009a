"""Each page that a message links to exists, with its heading; and the address stands once."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from synap_realtime.doctor import pages
from synap_realtime.documentation import SITE, Topic, see
from website.pages import ROOT, sources

from .headings import anchors

PACKAGE = ROOT / "synap_realtime"
FILES = {page.replace(".md", ".html"): file for file, page in sources().items()}


@pytest.mark.parametrize("topic", Topic)
def test_the_page_and_its_heading_exist(topic: Topic) -> None:
    page, _, anchor = topic.value.partition("#")
    assert page in FILES
    assert not anchor or anchor in anchors(FILES[page])
    assert see(topic).endswith(f"{SITE}{page}#{anchor}" if anchor else f"{SITE}{page}")


def test_the_address_is_that_of_the_site_and_of_the_package() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["site_url"]
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert site == package["Documentation"] == SITE


def test_the_address_stands_in_one_module_of_the_package() -> None:
    found = [path for path in PACKAGE.rglob("*.py") if SITE in path.read_text()]
    assert found == [PACKAGE / "documentation.py"]


def checks_in(file: Path) -> set[str]:
    """Return the subjects of the findings that a module writes."""
    calls = (each for each in ast.walk(ast.parse(file.read_text())) if isinstance(each, ast.Call))
    named = (each for each in calls if isinstance(each.func, ast.Name) and len(each.args) > 1)
    subjects = (each.args[1] for each in named if ast.unparse(each.func) == "Finding")
    return {str(each.value) for each in subjects if isinstance(each, ast.Constant)}


def test_the_pages_of_doctor_are_about_subjects_that_it_has() -> None:
    doctor = PACKAGE / "doctor"
    known = set().union(*map(checks_in, doctor.rglob("*.py"))) | {
        "key file", "WebSocket", "event stream", "public URL",  # they are arguments
    }  # fmt: skip
    assert pages.PAGES.keys() <= known
