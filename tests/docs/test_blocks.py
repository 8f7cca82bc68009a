"""Each code block of each page is checked, by the kind of its language: see :data:`CHECKED`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from website.pages import ROOT, sources

CHECKED = {
    "mermaid": "rendered by tests/docs/test_site.py",
    "python": "typed by tests/docs/test_snippets.py",
    "ts": "compiled by tests/docs/test_snippets.py",
    "tsx": "compiled by tests/docs/test_snippets.py",
    "js": "compiled by tests/docs/test_snippets.py",
    "console": "parsed here; options by tests/docs/test_snippets.py",
    "bash": "parsed here; options by tests/docs/test_snippets.py",
    "sh": "parsed here; options by tests/docs/test_snippets.py",
    "html": "its scripts are parsed here",
    "json": "parsed here",
    "toml": "parsed here",
    "yaml": "parsed here",
    "nginx": "run by tests/deploy/test_proxies.py",
    "caddy": "run by tests/deploy/test_proxies.py",
    "text": "no code, or rights, which tests/server/stores/redis/test_acl.py sets",
}
"""How the blocks of a language are checked. test_start.py and test_tutorials.py run all blocks of
their pages; test_scale_out.py, test_projects_page.py and tests/deploy run most of theirs."""

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
_EXTRAS = re.compile(r"synap[-_]realtime(?:-[\d.]+-py3-none-any\.whl)?\[([\w,]+)\]")


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str


def read_blocks() -> Iterator[Block]:
    for page in ("README.md", *sources()):
        for _, language, text in _FENCE.findall((ROOT / page).read_text()):
            yield Block(page, language, text)


BLOCKS = list(read_blocks())


def in_language(*languages: str) -> list[object]:
    found = [block for block in BLOCKS if block.language in languages]
    assert found
    return [
        pytest.param(block, id=f"{block.page}-{number}") for number, block in enumerate(found, 1)
    ]


def test_each_block_has_a_language_that_is_checked() -> None:
    assert {
        (block.page, block.language) for block in BLOCKS if block.language not in CHECKED
    } == set()


@pytest.mark.parametrize("block", in_language("json"))
def test_json_is_valid(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", in_language("toml"))
def test_toml_is_valid(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", in_language("yaml"))
def test_yaml_is_valid(block: Block) -> None:
    assert yaml.safe_load(block.text)


class Scripts(HTMLParser):
    """The scripts that are written in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._is_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_script = tag == "script" and not dict(attrs).get("src")

    def handle_data(self, data: str) -> None:
        if self._is_script:
            self.found.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._is_script = False


@pytest.mark.parametrize("block", in_language("html"))
def test_scripts_of_html_are_valid(block: Block, tmp_path: Path) -> None:
    node = Path(sys.executable).with_name("node")
    for number, script in enumerate(Scripts(block.text).found):
        path = tmp_path / f"{number}.mjs"
        # A page may be a template: what it fills in is a value.
        path.write_text(re.sub(r"\{[{%].*?[%}]\}", "null", script))
        subprocess.run([node, "--check", path], check=True)


def commands(block: Block) -> str:
    """Return the commands of a block, without what they print."""
    if block.language != "console":
        return block.text
    text = block.text.replace("\\\n", " ")
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))


@pytest.mark.parametrize("block", in_language("console", "bash", "sh"))
def test_shell_is_valid_and_names_what_exists(block: Block) -> None:
    shell = commands(block)
    subprocess.run(["bash", "-n"], input=shell, text=True, check=True)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in _EXTRAS.findall(shell):
        assert set(extras.split(",")) <= set(known)
    for path in re.findall(r"(?<![\w./-])(?:\./)?scripts/[\w-]+", shell):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"-m ((?:synap_realtime|benchmarks|tests|website)[\w.]*)", shell):
        assert find_spec(module), module
