"""Report a missing optional dependency, with the command that installs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE = "synap-realtime"


class MissingExtraError(ImportError):
    """An optional package is missing or incompatible. The message has the command to run."""


def install(*extras: str) -> str:
    """Return the command that installs extras of this package, quoted for any shell.

    Under ``uvx``, whose environments are made for one command, it is the whole ``uvx`` command.
    """
    wanted = ",".join(extras)
    if not _is_uvx():
        return f'pip install "{PACKAGE}[{wanted}]"'
    from urllib.parse import urlsplit  # here: this module is loaded at each start
    from urllib.request import url2pathname

    url = installed_from()
    source = url2pathname(urlsplit(url).path) if url else PACKAGE
    command = " ".join([PACKAGE, *sys.argv[1:2]])
    return f'uvx --from "{source}[{wanted}]" {command}'


def installed_from() -> str | None:
    """Return the ``file:`` URL of the wheel, sdist or folder that this package was installed from.

    None: it was installed from a package index, or from a version control system.

    Source: ``direct_url.json``, PyPA's "Recording the Direct URL Origin".
    """
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        record = distribution(PACKAGE).read_text("direct_url.json")
        url = json.loads(record or "{}").get("url")
    except (PackageNotFoundError, ValueError):
        return None
    return url if isinstance(url, str) and url.startswith("file:") else None


def _is_uvx() -> bool:
    # uv sets UV for each program that it runs, and VIRTUAL_ENV for `uv run`, not for `uvx`.
    return "UV" in os.environ and "VIRTUAL_ENV" not in os.environ


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
        MissingExtraError: a package is missing or incompatible.
    """
    try:
        yield
    except ImportError as error:
        ours = (error.name or "").startswith("synap_realtime")
        if ours or isinstance(error, MissingExtraError):
            raise
        raise MissingExtraError(lacks(feature, error, *extras), name=error.name) from error
