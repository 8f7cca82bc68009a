"""When a publish is answered: what a crash of Redis may lose."""

from __future__ import annotations

import enum
from typing import Any


class Durability(enum.Enum):
    """What has happened to a notification when its publish is answered with 200."""

    PRIMARY = "primary"
    """The primary has it in memory."""

    REPLICA = "replica"
    """A replica has it in memory, too."""

    DISK = "disk"
    """It is on the disk of the primary."""


CONFIRM_MS = 500
"""How long a flush waits for a replica. The node's probe waits as well: it has to arrive before the
feed considers its connection dead."""

PROMISES = {
    Durability.PRIMARY: (
        "a crash of Redis loses what it has not yet written to its disk, and a failover what the "
        "replica has not yet received"
    ),
    Durability.REPLICA: (
        "a publish is answered when a replica has it; a crash of the primary loses none of these "
        "if that replica takes over"
    ),
    Durability.DISK: (
        "a publish is answered when it is on the disk of the primary; a crash loses none of these, "
        "and a failover what the replica has not yet received"
    ),
}
"""What each level promises, for the operator."""


def describe_unconfirmed(reply: Any) -> str | None:
    """Say why no replica is known to have what was published; None: one has.

    Args:
        reply: the number of replicas, or an error.
    """
    if isinstance(reply, int):
        if reply > 0:
            return None
        reason = f"no replica has confirmed it within {CONFIRM_MS} ms"
    else:
        reason = f"Redis rejects WAIT ({reply})"
    return f"{reason}, as durability=replica requires; it may be stored: repeat it with the same id"
