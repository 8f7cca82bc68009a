"""The reference pages and the code say the same."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import get_args

import pytest

from synap_realtime.protocol.actions import ErrorCode
from synap_realtime.protocol.control import CloseCode
from synap_realtime.server.config import ServerSettings
from synap_realtime.server.http.openapi import document
from website import reference
from website.api import expand
from website.docstrings import to_markdown

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ERRORS = (DOCS / "reference/errors.md").read_text()
PROTOCOL = (ROOT / "PROTOCOL.md").read_text()
API = "".join(page.read_text() for page in sorted((DOCS / "reference/python").glob("*.md")))


@pytest.mark.parametrize(
    ("page", "part"),
    [
        pytest.param(reference.OPTIONS, reference.options_page, id="options"),
        pytest.param(reference.COMMANDS, reference.commands_page, id="commands"),
    ],
)
def test_generated_page_is_current(page: Path, part: object) -> None:
    text = page.read_text()
    assert callable(part)
    assert reference.replace_generated(text, part()) == text, "run: python -m website.reference"


def test_options_page_has_every_setting_once() -> None:
    names = [name for group in reference.GROUPS.values() for name in group]
    assert sorted(names) == sorted(ServerSettings.model_fields)


def section(heading: str) -> list[list[str]]:
    """Return the rows of the table below a heading of the page of errors."""
    text = ERRORS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in row.split("|")]
        for row in re.findall(r"^\| (.+) \|$", text, re.M)[2:]
    ]


def in_code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_errors_page_has_every_code_of_http() -> None:
    codes = document()["components"]["schemas"]["Error"]["properties"]["code"]["enum"]
    assert {code for row in section("HTTP") for code in in_code(row[1])} == set(codes)


def test_errors_page_has_every_close_code() -> None:
    codes = {int(code) for row in section("Close codes") for code in re.findall(r"\d{4}", row[0])}
    assert codes == {*CloseCode, 1000, 1001, 1006, 1011, 1012}


def test_errors_page_has_every_code_of_a_room() -> None:
    assert [in_code(row[0])[0] for row in section("Errors of a room")] == list(get_args(ErrorCode))


def test_errors_page_has_every_reason_of_an_invalid_credential() -> None:
    part = PROTOCOL.partition("\n## Close codes\n")[2].partition("The reason is meant for")[0]
    reasons = in_code(part.partition("`details`")[2])
    assert "token expired" in reasons
    assert [in_code(row[0])[0] for row in section("Credentials")] == reasons


@pytest.mark.parametrize(
    "heading", ["HTTP", "Close codes", "Errors of a room", "Credentials", "Permissions"]
)
def test_each_error_has_a_cause_and_a_cure(heading: str) -> None:
    assert [row for row in section(heading) if not all(row[-2:])] == []


@pytest.mark.parametrize(
    "module",
    ["synap_realtime", "synap_realtime.jobs", "synap_realtime.server", "synap_realtime.testing"],
)
def test_api_pages_have_every_public_name(module: str) -> None:
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    listed = set(re.findall(r"^::: (\S+)$", API, re.MULTILINE))
    aliases = {name.replace(".jobs.", ".") for name in listed} | {
        re.sub(r"^synap_realtime\.", "synap_realtime.jobs.", name) for name in listed
    }
    assert {name for name in names - listed - aliases if not name.endswith("__version__")} == set()


def test_pages_name_only_metrics_that_exist() -> None:
    table = PROTOCOL.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    known = set(re.findall(r"`([a-z_]+)`", table))
    for page in DOCS.rglob("*.md"):
        for name in re.findall(r"\bsynap_realtime_([a-z_]+[a-z])\b", page.read_text()):
            assert name in known or re.sub(r"_(bucket|count|sum)$", "", name) in known, (page, name)


def test_docstrings_become_markdown() -> None:
    text = "Call :meth:`~a.b.Some.call`, see :class:`Other`.\n\n::\n\n    x = f()\n\nIt ends.\n"
    expected = "Call `call`, see `Other`.\n\n```python\nx = f()\n```\n\nIt ends.\n"
    assert to_markdown(text) == expected


def test_literal_block_of_a_sentence_keeps_its_colon() -> None:
    assert (
        to_markdown("Run::\n\n    $ scripts/test\n")
        == "Run:\n\n```console\n$ scripts/test\n```\n\n"
    )


def test_markdown_of_an_api_page_describes_each_name() -> None:
    text = expand("::: synap_realtime.follow_job\n")
    assert "def follow_job(request_id: UserId, url: str | None = None" in text
    assert "\n- `request_id`: the request; its room is" in text
    assert "\nRaises:\n\n- `InvalidArgumentError, ConfigurationError, SubscriptionError`" in text
