"""``synap-realtime serve``: run the room server. Its options are the server's settings."""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..extras import needed_by

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def serve() -> None:
    """Run the room server.

    There are no options for secrets, because other users of the machine can read command lines.
    Put secrets into the file of --keys-file, or into SYNAP_REALTIME_TOKEN_SECRETS and
    SYNAP_REALTIME_API_KEYS.
    """


class ServeCommand(TyperCommand):
    """A command with an option for each field of ``ServerSettings``.

    The options are created when they are first needed, because that loads the server.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options."""
        if not self.params:
            self.params = settings_options()
        return super().get_params(ctx)

    def invoke(self, ctx: Any) -> None:
        """Run the server with the options that were given.

        Raises:
            ConfigurationError: a setting is invalid, or the port is in use.
        """
        with needed_by("synap-realtime serve", "server"), _without_gc():
            from ..server.config import load_settings
            from ..server.workers import run

        run(load_settings(**ctx.params))


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Load modules without looking for garbage; see ``__main__``."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def settings_options() -> list[Any]:
    """Return an option for each setting of the server that is not a secret.

    Raises:
        ImportError: the extra ``server`` is not installed.
    """
    with needed_by("synap-realtime serve", "server"), _without_gc():
        from ..server.config import ENV_PREFIX, SECRETS, ServerSettings

    types = {}
    for name, field in ServerSettings.model_fields.items():
        if name not in SECRETS:
            variable = f"[env: {ENV_PREFIX}{name.upper()}]"
            types[name] = _option_type(name, field, f"{help_text(name, field)} {variable}")

    def command() -> None: ...

    # Typer reads the options of a command from the signature of its function.
    kind = inspect.Parameter.KEYWORD_ONLY
    command.__annotations__ = types
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, default=None, annotation=types[name]) for name in types]
    )
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return list(typer.main.get_command(app).params)


def _option_type(name: str, field: FieldInfo, text: str) -> Any:
    """Return the annotated type of an option. A list is one text with commas, as in a variable.

    Typer does not check files: the server's own error is the same for an environment variable.
    """
    option = name.replace("_", "-")
    match field.annotation:
        case type() as plain if plain is bool:
            return Annotated[bool | None, typer.Option(f"--{option}/--no-{option}", help=text)]
        case type() as plain if plain in (int, float):
            return Annotated[plain | None, typer.Option(help=text)]
        case annotation if annotation == Path | None:
            return Annotated[Path | None, typer.Option(help=text, readable=False)]
        case _:
            return Annotated[str | None, typer.Option(help=text)]


def help_text(name: str, field: FieldInfo) -> str:
    """Return the description of a setting and its default, if it has one."""
    description = " ".join((field.description or "").split())
    default = default_text(name, field.default)
    return description if default is None else f"{description} Default: {default}."


def default_text(name: str, value: object) -> str | None:
    """Return the default of a setting, with a readable unit; None if it has none."""
    match value:
        case bool():
            return "on" if value else "off"
        case int() if "_bytes" in name:
            return f"{value} ({value // 2**20} MiB)"
        case int() | float() if value >= 86_400 and value % 86_400 == 0:
            days = int(value) // 86_400
            return f"{value:.15g} ({days} {'day' if days == 1 else 'days'})"
        case int() | float():
            return f"{value:.15g}"
        case str():
            return value
        case _:
            return None
