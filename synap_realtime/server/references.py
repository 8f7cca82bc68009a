"""Things of one's own that a setting names: ``module:name``."""

from __future__ import annotations

import importlib
import re
import sys

from ..errors import ConfigurationError
from ..redaction import redacted

REFERENCE = re.compile(r"[\w.]+:\w+")


def resolve(option: str, reference: str) -> object:
    """What a reference leads to; the current folder's modules, too.

    Args:
        option: for the error, ``--authorizer (SYNAP_REALTIME_AUTHORIZER)``.

    Raises:
        ConfigurationError: there is no such thing, or its module cannot be imported.
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
