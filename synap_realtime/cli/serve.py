"""``synap-realtime serve``: run the room server. Its options are the server's settings."""

from __future__ import annotations

import ast
import inspect
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..extras import needed_by
from .start import start, without_gc

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
        start(ctx.params)


def settings_options() -> list[Any]:
    """Return an option for each setting of the server that is not a secret.

    Raises:
        ImportError: the extra ``server`` is not installed.
    """
    with needed_by("synap-realtime serve", "server"), without_gc():
        from ..server.config import ENV_PREFIX, SECRETS, ServerSettings

    descriptions = descriptions_of(ServerSettings)
    types = {}
    for name, field in ServerSettings.model_fields.items():
        if name not in SECRETS:
            text = help_text(name, field, descriptions[name])
            types[name] = _option_type(name, field, f"{text} [env: {ENV_PREFIX}{name.upper()}]")

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


def descriptions_of(settings: type) -> dict[str, str]:
    """Return the docstring of each field by its name.

    Pydantic can read them, too, but would do so each time that the server starts.
    """
    (statement,) = ast.parse(inspect.getsource(settings)).body
    assert isinstance(statement, ast.ClassDef)  # noqa: S101 - the source of a class
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(statement.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def help_text(name: str, field: FieldInfo, description: str) -> str:
    """Return the description of a setting and its default, if it has one."""
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
