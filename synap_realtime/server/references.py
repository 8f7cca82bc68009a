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
        option: for the error, ``--may (SYNAP_REALTIME_MAY)``.

    Raises:
        ConfigurationError: there is no such thing.
    """
    module, _, attribute = reference.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{option}: {redacted(f'{reference}: {error}')}") from None
    finally:
        sys.path.remove("")
