"""Word errors so that they name what the user wrote: an option or an environment variable."""

from __future__ import annotations

import sys
from typing import Any

from ..documentation import Topic, see
from ..errors import ConfigurationError
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
    name, _, problem = text.partition(": ")
    command = group.commands.get(_command_name(group))
    for parameter in command.params if command else ():
        if parameter.name == _OPTIONS.get(name, name):
            shown = parameter.opts[0]
            shown = shown if shown.startswith("-") else shown.upper()
            variable = f" ({parameter.envvar})" if parameter.envvar else ""
            return f"{shown}{variable}: {problem}"
    return text


def link_for(error: Exception) -> str:
    """Return the end of an error's message: the page about starting the server, if that failed."""
    starts = isinstance(error, ConfigurationError) and sys.argv[1:2] == ["serve"]
    return see(Topic.NO_START) if starts else ""


def _command_name(group: Any) -> str | None:
    return next((word for word in sys.argv[1:] if word in group.commands), None)


def name_client_options(text: str) -> str:
    """Return an error of a client with options in place of the client's arguments."""
    for argument, option in _CLIENT_ARGUMENTS.items():
        text = text.replace(argument, option)
    return text


def usage_message(error: Any, group: Any) -> str | None:
    """Return one line about a wrong command line; None if it is empty: the help is to be shown.

    Args:
        group: the Click group with the command that failed.
    """
    context = getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if context and text == context.get_help():
        return None
    words = ["synap-realtime", _command_name(group)]
    command = context.command_path if context else " ".join(filter(None, words))
    problem = redacted(" ".join(text.split())).rstrip(".").replace(": Value error, ", ": ")
    return f"{problem} (see: {command} --help)"
