"""Word errors so that they name what the user wrote: an option or an environment variable."""

from __future__ import annotations

import os
import sys
from typing import Any

from ..redaction import redacted

_OPTIONS = {"api_key": "key", "user_id": "user", "requestId": "request_id"}
"""The options whose name differs from the argument's, by the name of the argument."""

_CLIENT_ARGUMENTS = {
    "api_key=": "--key", "(token=)": "(--token, REALTIME_TOKEN)", "url=": "--url",
}  # fmt: skip


def name_option(text: str, group: Any) -> str:
    """Return an error's text with the option or variable in place of a function's argument.

    Args:
        text: such as ``expires_in_s: expected a number``.
        group: the Click group with the command that failed.
    """
    return _with_variable(_with_option(text, group))


def _with_option(text: str, group: Any) -> str:
    name, _, problem = text.partition(": ")
    commands = group.commands
    command = next((commands[word] for word in sys.argv[1:] if word in commands), None)
    for parameter in command.params if command else ():
        if parameter.name == _OPTIONS.get(name, name):
            shown = parameter.opts[0]
            shown = shown if shown.startswith("-") else shown.upper()
            variable = f" ({parameter.envvar})" if parameter.envvar else ""
            return f"{shown}{variable}: {problem}"
    return text


def _with_variable(text: str) -> str:
    """Replace an option in an error by its environment variable, if the value came from there."""
    option, _, rest = text.partition(" ")
    name = option.rstrip(":")
    variable = "SYNAP_REALTIME_" + name.removeprefix("--").replace("-", "_").upper()
    if not name.startswith("--") or variable not in os.environ or rest.startswith("("):
        return text
    if any(word.partition("=")[0] == name for word in sys.argv[1:]):
        return text
    return f"{variable}{option.removeprefix(name)} {rest}"


def name_client_options(text: str) -> str:
    """Return an error of a client with options in place of the client's arguments."""
    for argument, option in _CLIENT_ARGUMENTS.items():
        text = text.replace(argument, option)
    return text


def usage_message(error: Any) -> str | None:
    """Return one line about a wrong command line; None if it is empty: the help is to be shown."""
    context = getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if context and text == context.get_help():
        return None
    command = context.command_path if context else "synap-realtime"
    problem = redacted(" ".join(text.split())).rstrip(".")
    return f"{problem} (see: {command} --help)"
