"""The states of a subscription, and which of them can follow each other."""

from __future__ import annotations

from enum import IntEnum, auto


class DeliveryState(IntEnum):
    """The states of a subscription. Live entries are those that arrive from the hub."""

    JOINING = auto()
    """It was opened. It is not in the hub yet, and has no sink."""

    REPLAYING = auto()
    """It reads the log. Live entries are not buffered: they are in the log."""

    CATCHING_UP = auto()
    """It reads the last page of the log. Live entries go to the backlog."""

    LIVE = auto()
    """It has no backlog. Live entries are written directly, perhaps by a fan-out group."""

    BLOCKED = auto()
    """Its socket is blocked. Live entries go to the backlog."""

    DRAINING = auto()
    """It accepts no new entries, and is closed when the replay and the backlog are written."""

    CLOSED = auto()
    """It writes nothing more."""


_JOINING, _REPLAYING, _CATCHING_UP, _LIVE, _BLOCKED, _DRAINING, _CLOSED = DeliveryState

NEXT_STATES = {
    _JOINING: {_REPLAYING, _DRAINING, _CLOSED},
    _REPLAYING: {_CATCHING_UP, _DRAINING, _CLOSED},
    _CATCHING_UP: {_LIVE, _BLOCKED, _DRAINING, _CLOSED},
    _LIVE: {_BLOCKED, _DRAINING, _CLOSED},
    _BLOCKED: {_LIVE, _DRAINING, _CLOSED},
    _DRAINING: {_CLOSED},
    _CLOSED: set[DeliveryState](),
}
"""The states that can follow each state."""
