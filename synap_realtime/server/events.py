"""Lines about single connections, publishes and refusals. See README.md, "Watch it".

They hold ids as members of their own (``extra``): room, user, device, the name of a key, a
notification's id; never what is in a notification, a key, a token or an address' query.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256

from ..protocol.control import CloseCode
from ..protocol.rooms import Room
from .auth import Claims
from .stores.base import Receipt

logger = logging.getLogger(__name__)

MAX_LINES_PER_S = 50
"""More at ``info`` are left out, so that strangers cannot fill a disk; the next line says how
many. What is asked for with ``--log-level debug`` is not counted."""

_ROUTINE = {CloseCode.DRAINING, CloseCode.SILENT, CloseCode.TOKEN_EXPIRED}


class AtMost(logging.Filter):
    """Lets so many records a second through; the first of the next second has ``left_out``."""

    def __init__(self, per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._per_s = per_s
        self._clock = clock
        self._second = 0
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        second = int(self._clock())
        if second != self._second:
            if self._count > self._per_s:
                record.left_out = self._count - self._per_s
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= self._per_s


logger.addFilter(AtMost(MAX_LINES_PER_S))


def refused(
    problem: Mapping[str, str], address: str | None, room: Room | None, claims: Claims | None
) -> None:
    """A request, a handshake or a notification of a batch that got an error.

    Args:
        problem: the body of the error; of a page, which can read a close code and no answer, the
            code's name and number.
        claims: whose it was, if that is known.
    """
    if logger.isEnabledFor(logging.INFO):
        # What is malformed may be repeated in the details.
        details = problem["error" if problem["code"] == "malformed" else "details"]
        _write(
            logging.INFO, "refused", claims,
            room=room, address=address, code=problem["code"], details=details,
        )  # fmt: skip


def opened(room: Room, claims: Claims, address: str | None, device: str | None, kind: str) -> None:
    """A connection began."""
    if logger.isEnabledFor(logging.DEBUG):
        _write(
            logging.DEBUG, "connected", claims,
            room=room, device=device, address=address, transport=kind,
        )  # fmt: skip


def closed(
    room: Room,
    claims: Claims,
    address: str | None,
    device: str | None,
    code: CloseCode | None,
    lasted_s: float,
) -> None:
    """A connection ended; ``code``: the server ended it, and why."""
    level = logging.DEBUG if code is None or code in _ROUTINE else logging.INFO
    if logger.isEnabledFor(level):
        _write(
            level, "disconnected", claims, room=room, device=device, address=address,
            code=None if code is None else int(code),
            reason="gone" if code is None else code.name.lower(), lasted_s=round(lasted_s, 3),
        )  # fmt: skip


def are_detailed() -> bool:
    """Whether there are lines about each connection and publish."""
    return logger.isEnabledFor(logging.DEBUG)


def published(claims: Claims, receipts: Iterable[tuple[Room, Receipt]]) -> None:
    """Notifications were kept; one line for each room."""
    for room, receipt in receipts:
        _write(
            logging.DEBUG, "published", claims, room=room, id=receipt.id,
            listeners=receipt.broadcast_count, duplicate=receipt.duplicate,
        )  # fmt: skip


def revoked(claims: Claims, of: str, name: str, count: int) -> None:
    """Somebody's tokens were taken back: which is always written. Of a token's id a digest: the id
    itself may be a secret of another system."""
    shown = name if of == "user" else sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    kind = "user" if of == "user" else "token"
    _write(logging.INFO, "revoked", claims, **{f"revoked_{kind}": shown}, closed=count)


def _write(level: int, message: str, claims: Claims | None, **fields: object) -> None:
    if claims is not None:
        fields = {"user": claims.user, "key": claims.key, **fields}
    extra = {name: value for name, value in fields.items() if value is not None}
    logger.log(level, message, extra=extra)
