"""The commands of ``synap-realtime``."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ..errors import SynapRealtimeError
from . import console
from .demo import demo
from .doctor import doctor
from .generate_keys import generate_keys
from .generate_types import generate_types
from .init import init
from .messages import link_for, name_option, usage_message
from .publish import publish
from .serve import ServeCommand, serve
from .subscribe import subscribe
from .token import token

app = typer.Typer(
    name="synap-realtime",
    help="Push realtime notifications of background jobs to the users who requested them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=ServeCommand)(serve)
for _command in (generate_keys, token, subscribe, publish, generate_types, doctor, demo, init):
    app.command()(_command)

# The class of Click, or of the copy of Click in Typer.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]


def _print_version(asked: bool) -> None:
    if asked:
        console.show(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def run() -> int:
    """Run the command line, and return the exit code.

    Raises:
        ImportError, OSError: see :func:`.entry.main`.
    """
    try:
        return app(standalone_mode=False) or 0
    except _USAGE_ERROR as error:
        return _report_usage(error)
    except typer.Abort:  # Ctrl-C in Typer before 0.20
        return console.INTERRUPTED
    except SynapRealtimeError as error:
        text = name_option(str(error), typer.main.get_command(app))
        console.say(text + link_for(error))
        return 2


def _report_usage(error: Exception) -> int:
    """Print one line about a wrong command line, or the whole help if the command line is empty."""
    message = usage_message(error, typer.main.get_command(app))
    if message is None:
        console.show(error.ctx.get_help())  # type: ignore[attr-defined]
    else:
        console.say(message)
    return 2
