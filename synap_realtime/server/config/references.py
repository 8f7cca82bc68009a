"""Resolve references to application code: ``module:name``."""

from __future__ import annotations

import importlib
import re
import sys

from ...errors import ConfigurationError
from ...redaction import redacted

REFERENCE = re.compile(r"[\w.]+:\w+")


def resolve(option: str, reference: str) -> object:
    """Return the object that a reference names. Modules of the current folder are found, too.

    Args:
        option: for the error, such as ``--authorizer (SYNAP_REALTIME_AUTHORIZER)``.

    Raises:
        ConfigurationError: the module cannot be imported, or has no such name.
    """
    module, _, attribute = reference.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        known = isinstance(error, ImportError | AttributeError)
        cause = f"{error}" if known else f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{option}: {redacted(f'{reference}: {cause}')}") from error
    finally:
        sys.path.remove("")
