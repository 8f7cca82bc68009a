"""The test kit: what your jobs tell, recorded; no server and no network.

With pytest the fixture ``realtime`` is there as soon as the package is installed. Without it::

    with record() as realtime:
        create_note()
        assert realtime.types() == ["note.creation.started", "note.creation.completed"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recorder import RealtimeRecorder, record
    from .rooms import SentNotification

__all__ = ["RealtimeRecorder", "SentNotification", "record"]

_LAZY_IMPORTS = {".recorder": ["RealtimeRecorder", "record"], ".rooms": ["SentNotification"]}
"""Names by module. The plugin is in this package, and must load none of them before its fixture is
used: pytest loads it in every test run of the environment."""


def __getattr__(name: str) -> Any:
    for module, names in _LAZY_IMPORTS.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module, __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
