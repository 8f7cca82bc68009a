"""The test kit: record what your jobs publish, without a server and a network.

The package registers the pytest fixture ``realtime``. Without pytest::

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
"""Names by module. pytest imports the plugin of this package in every test run of the environment,
so none of them may be imported before the fixture is used.
"""


def __getattr__(name: str) -> Any:
    for module, names in _LAZY_IMPORTS.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module, __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
