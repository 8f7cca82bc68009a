"""The commands of ``synap-realtime``, and their exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import SynapRealtimeError
from ..extras import install
from ..redaction import redacted
from . import console
from .demo import demo
from .doctor import doctor
from .generate_keys import generate_keys
from .generate_types import generate_types
from .init import init
from .messages import name_option, usage_message
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


def main() -> None:
    """Run the command line. Report errors as one line on stderr and an exit code, not a traceback.

    Exit codes: 0; 1: the command failed; 2: the command line, the settings or the installation are
    wrong; 74: stdout cannot be written; 130: Ctrl-C.
    """
    console.prepare()
    try:
        code = _run()
        console.flush()
    except console.ReaderGoneError:
        code = 0
    except console.UnwritableError as error:
        console.say(f"could not print: {error}")
        code = console.UNWRITABLE
    except KeyboardInterrupt:
        code = console.INTERRUPTED
    sys.exit(code)


def _run() -> int:
    try:
        return app(standalone_mode=False) or 0
    except _USAGE_ERROR as error:
        return _report_usage(error)
    except typer.Abort:  # Ctrl-C in Typer before 0.20
        return console.INTERRUPTED
    except SynapRealtimeError as error:
        console.say(name_option(str(error), typer.main.get_command(app)))
    except ImportError as error:
        text = str(error)
        if "pip install" not in text:
            text = f"cannot be loaded ({text}): {install('server', 'cli')}"
        console.say(text)
    except OSError as error:
        what = redacted(str(error.filename)) if error.filename else "working directory"
        console.say(f"{what}: {error.strerror or error}")
        return 1
    return 2


def _report_usage(error: Exception) -> int:
    """Print one line about a wrong command line, or the whole help if the command line is empty."""
    message = usage_message(error, typer.main.get_command(app))
    if message is None:
        console.show(error.ctx.get_help())  # type: ignore[attr-defined]
    else:
        console.say(message)
    return 2
