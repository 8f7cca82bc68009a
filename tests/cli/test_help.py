"""``--help``: whole sentences, and defaults in one form."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer

from synap_realtime.cli.app import app

GROUP: Any = typer.main.get_command(app)


@pytest.mark.parametrize("name", GROUP.commands)
def test_each_option_has_a_whole_sentence(name: str) -> None:
    command = GROUP.commands[name]
    for parameter in command.get_params(typer.Context(command, info_name=name)):
        text = re.sub(r" \[env: \w+\]$", "", parameter.help or "")
        assert re.fullmatch(r"[A-Z-].*\.", " ".join(text.split())), parameter.name


@pytest.mark.parametrize("name", GROUP.commands)
def test_defaults_are_written_in_one_form(name: str) -> None:
    command = GROUP.commands[name]
    shown = " ".join(command.get_help(typer.Context(command, info_name=name)).split())
    for word in re.finditer("default", shown, re.IGNORECASE):
        assert re.match(r"Default: [^.]", shown[word.start() :]), shown[word.start() :]


def test_the_list_of_commands_has_whole_sentences() -> None:
    shown = GROUP.get_help(typer.Context(GROUP, info_name="synap-realtime"))
    for name in GROUP.commands:
        assert re.search(rf"^  {name} +[A-Z].*[^.]\.$", shown, re.MULTILINE), name
