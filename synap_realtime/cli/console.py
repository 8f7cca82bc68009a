"""Print to stdout and stderr, whatever they are: a terminal, a pipe, a full disk, closed.

Only messages for the user go to stderr: ``synap-realtime: what happened: cause; what to do``.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import InvalidArgumentError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in shells."""

UNWRITABLE = 74
"""The exit code when stdout cannot be written (a full disk): EX_IOERR of ``sysexits.h``."""


class UnwritableError(Exception):
    """Stdout cannot be written, for example because the disk is full."""


class ReaderGoneError(Exception):
    """The reader of stdout has closed it, as ``| head -1`` does. This is not a failure."""


def prepare() -> None:
    """Make stdin, stdout and stderr usable, even if the process was started with them closed.

    Open a closed one as the null device. Otherwise the next file or socket gets its descriptor, and
    receives what is printed. Escape characters that the locale's encoding lacks.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY
            with suppress(OSError):
                descriptor = os.open(os.devnull, mode)
                if descriptor != number:
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                opened = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115 - open for the life of the process
                setattr(sys, name, opened)
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def read_stdin(field: str) -> str:
    """Return all of stdin.

    Raises:
        InvalidArgumentError: stdin is not text, or cannot be read; names ``field``.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(field, f"stdin is not text in {error.encoding}") from None
    except OSError as error:
        raise InvalidArgumentError(field, f"cannot read stdin: {error.strerror}") from None


def show(text: str) -> None:
    """Print to stdout, and flush it.

    Raises:
        ReaderGoneError: the reader has closed it.
        UnwritableError: it cannot be written.
    """
    with _translated():
        print(text, flush=True)


def say(text: str) -> None:
    """Print a message for the user to stderr."""
    with suppress(OSError):  # stderr is closed, or its disk is full
        print(f"synap-realtime: {printable(text)}", file=sys.stderr, flush=True)


def flush() -> None:
    """Flush stdout.

    Raises:
        ReaderGoneError: the reader has closed it.
        UnwritableError: it cannot be written.
    """
    with _translated():
        sys.stdout.flush()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Drop buffered output: the interpreter would fail to flush it at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError from None
        raise UnwritableError(error.strerror or str(error)) from None


def printable(text: str) -> str:
    """Escape control characters, which could move the cursor, change colours or reverse text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, noun: str) -> str:
    """Return ``1 key`` or ``2 keys``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
