"""Report a missing optional dependency, with the command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def install(*extras: str) -> str:
    """Return the command that installs extras of this package, quoted for any shell."""
    return f'pip install "synap-realtime[{",".join(extras)}]"'


def lacks(feature: str, error: ImportError, *extras: str) -> str:
    """Return the cause why a feature is unavailable, and the command that installs what it needs.

    Args:
        feature: what needs the package, for the message: ``"the Celery integration"``.
        error: the error of the import: the package is missing, or its version is incompatible.
        extras: the extras of this package that install it.
    """
    if isinstance(error, ModuleNotFoundError):
        return f"{feature} needs {error.name}: {install(*extras)}"
    return f"{feature} cannot be loaded ({error}): {install(*extras)} --upgrade"


@contextmanager
def needed_by(feature: str, *extras: str) -> Iterator[None]:
    """Translate import errors inside this block; see :func:`lacks`.

    Raises:
        ImportError: a package is missing or incompatible. The message has the ``pip install`` line.
    """
    try:
        yield
    except ImportError as error:
        if "pip install" in str(error) or (error.name or "").startswith("synap_realtime"):
            raise
        raise ImportError(lacks(feature, error, *extras), name=error.name) from error
