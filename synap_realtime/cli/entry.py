"""Run a command, and turn its errors into messages and exit codes."""

from __future__ import annotations

import sys

from ..errors import SynapRealtimeError
from ..extras import MissingExtraError, install, lacks
from ..redaction import redacted
from . import console
from .start import read_arguments, start

_EXTRAS = {"demo": "demo", "serve": "server"}
"""The extra that brings all that a command needs, for the commands that need more than ``cli``."""


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
        if sys.argv[1:2] == ["serve"] and (given := read_arguments(sys.argv[2:])) is not None:
            start(given)
            return 0
        return _run_typer()
    except SynapRealtimeError as error:
        from .messages import link_for  # here: for an error alone

        console.say(str(error) + link_for(error))
    except ImportError as error:
        text = str(error)
        if not isinstance(error, MissingExtraError):
            text = f"cannot be loaded ({text}): {install('server', 'cli')}"
        console.say(text)
    except OSError as error:
        what = redacted(str(error.filename)) if error.filename else "working directory"
        console.say(f"{what}: {error.strerror or error}")
        return 1
    return 2


def _run_typer() -> int:
    try:
        from .app import run
    except ImportError as error:
        extra = next((_EXTRAS[word] for word in sys.argv[1:2] if word in _EXTRAS), "cli")
        raise MissingExtraError(lacks("this command", error, extra)) from None
    return run()
