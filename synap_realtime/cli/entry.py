"""Run a command, and turn its errors into messages and exit codes."""

from __future__ import annotations

import sys

from ..errors import SynapRealtimeError
from ..extras import install, lacks
from ..redaction import redacted
from . import console
from .start import read_arguments, start


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
        console.say(str(error))
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


def _run_typer() -> int:
    try:
        from .app import run
    except ImportError as error:
        raise ImportError(lacks("this command", error, "cli")) from None
    return run()
