"""Optional dependencies: what to install where one is missing, in the same words everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def install(*extras: str) -> str:
    """The command that installs extras of this package, quoted so that every shell takes it."""
    return f'pip install "synap-realtime[{",".join(extras)}]"'


def lacks(feature: str, error: ImportError, *extras: str) -> str:
    """Why a feature cannot be used, and the command that installs what it needs.

    Args:
        feature: what needs the package, as the subject of a sentence: ``"the Celery integration"``.
        error: of importing the package: it is missing, or is of a version that does not fit.
        extras: the extras of this package that install it.
    """
    if isinstance(error, ModuleNotFoundError):
        return f"{feature} needs {error.name}: {install(*extras)}"
    return f"{feature} cannot be loaded ({error}): {install(*extras)} --upgrade"


@contextmanager
def needed_by(feature: str, *extras: str) -> Iterator[None]:
    """Import inside this block what extras install; see :func:`lacks`.

    Raises:
        ImportError: a package is missing or does not fit. The message has the ``pip install`` line.
    """
    try:
        yield
    except ImportError as error:
        if "pip install" in str(error) or (error.name or "").startswith("synap_realtime"):
            raise
        raise ImportError(lacks(feature, error, *extras), name=error.name) from error
