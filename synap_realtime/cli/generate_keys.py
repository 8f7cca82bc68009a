"""``synap-realtime generate-keys``: create the key file of a room server, or rotate its keys."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidArgumentError
from . import key_file
from .console import counted, say, show


def generate_keys(
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write, atomically and with mode 0600. Default: print the keys.",
            readable=False,
        ),
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Add new keys to the file. The old keys stay valid.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the keys that were rotated out from the file.")
    ] = False,
) -> None:
    """Create the file of serve --keys-file, or rotate its keys.

    The last lines of the file are the environment of your application. A running server reloads the
    file when it changes.
    """
    if rotate and prune:
        raise InvalidArgumentError(
            "--prune", "cannot be combined with --rotate: applications need the new keys first"
        )
    if out is None:
        if rotate or prune:
            raise InvalidArgumentError("--out", "name the file to change")
        _print_keys()
    elif rotate:
        _rotate(out)
    elif prune:
        _prune(out)
    else:
        key_file.create(out)
        show(f"created {out} with mode 0600; its last lines are for your application")


def _print_keys() -> None:
    if _is_redirected():
        say("note: a redirect does not set the mode of the file; --out FILE writes it as 0600")
    show(key_file.to_toml(key_file.new_keys()).rstrip("\n"))


def _is_redirected() -> bool:
    """Return whether stdout is a regular file."""
    with suppress(OSError, ValueError):  # a test's stdout has no descriptor
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    return False


def _rotate(out: Path) -> None:
    key_file.change(out, key_file.rotated)
    show(
        f"added new keys to {out}; the old keys stay valid. Give your application the last "
        "lines of the file. When all tokens of the old secret have expired, run: "
        f"synap-realtime generate-keys --out {shlex.quote(str(out))} --prune"
    )


def _prune(out: Path) -> None:
    before, after = key_file.change(out, key_file.pruned)
    secrets = len(before.token_secrets) - len(after.token_secrets)
    api_keys = len(before.api_keys) - len(after.api_keys)
    removed = f"{counted(secrets, 'token secret')} and {counted(api_keys, 'API key')}"
    show(f"removed {removed} from {out}")
