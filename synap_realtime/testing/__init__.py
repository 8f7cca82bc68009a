"""The test kit: what your jobs tell, recorded; no server and no network.

With pytest the fixture ``realtime`` is there as soon as the package is installed. Without it::

    with record() as realtime:
        create_note()
        assert realtime.types() == ["note.creation.started", "note.creation.completed"]
"""

from __future__ import annotations

from .recorder import Realtime, record
from .rooms import Sent

__all__ = ["Realtime", "Sent", "record"]
