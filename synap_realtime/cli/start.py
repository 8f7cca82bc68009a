"""Start the room server from the arguments of ``serve``.

Loading Typer and creating 50 options would be a sixth of the time until the server listens, so this
module reads the arguments itself. Typer prints the help, and what is wrong with a command line.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..extras import needed_by


def read_arguments(words: Sequence[str]) -> dict[str, Any] | None:
    """Return the settings that the arguments of ``serve`` give, as text or bool.

    Returns:
        None if the arguments are wrong, or ask for the help.

    Raises:
        ImportError: the extra ``server`` is not installed.
    """
    if "--help" in words:
        return None
    with needed_by("synap-realtime serve", "server"), without_gc():
        from ..server.config import SECRETS, ServerSettings

    fields = ServerSettings.model_fields
    given: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        option, has_value, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        is_off = name.startswith("no_") and name not in fields
        name = name.removeprefix("no_") if is_off else name
        if option != _option_of(name, is_off=is_off) or name not in fields or name in SECRETS:
            return None
        if fields[name].annotation is bool:
            if has_value:
                return None
            given[name] = not is_off
            continue
        text = value if has_value else next(rest, None)
        if is_off or text is None:
            return None
        given[name] = text
    return given


def _option_of(name: str, *, is_off: bool) -> str:
    return f"--{'no-' if is_off else ''}{name.replace('_', '-')}"


def start(given: Mapping[str, Any]) -> None:
    """Run the server with these settings, until it is stopped. None: not given.

    Raises:
        ConfigurationError: a setting is invalid, or the port is in use.
        ImportError: the extra ``server`` is not installed.
    """
    with needed_by("synap-realtime serve", "server"), without_gc():
        from ..server.config import load_settings
        from ..server.workers import run

    run(load_settings(**given))


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Load modules without looking for garbage; see ``__main__``."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
