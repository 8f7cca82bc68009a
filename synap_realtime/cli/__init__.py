"""The command ``synap-realtime``: a module for each command, with the command's name.

``app.py`` lists the commands and turns errors into messages and exit codes. ``console.py`` prints.
To add a command, write its module and list it in ``app.py``. A module imports at its top only what
is fast to load, so that ``--help`` and ``--version`` stay fast; the rest is imported where it is
used.
"""

from __future__ import annotations

from ..extras import lacks
from . import console

try:
    from .app import main
except ImportError as error:
    console.say(lacks("this command", error, "cli"))
    raise SystemExit(2) from None

__all__ = ["main"]
