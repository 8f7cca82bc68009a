"""The command ``synap-realtime``: a module for each command, with the command's name.

``app.py`` lists the commands. ``entry.py`` turns errors into messages and exit codes, and
``console.py`` prints. To add a command, write its module and list it in ``app.py``. A module
imports at its top only what is fast to load, so that ``--help`` and ``--version`` stay fast; the
rest is imported where it is used.
"""

from __future__ import annotations

from .entry import main

__all__ = ["main"]
