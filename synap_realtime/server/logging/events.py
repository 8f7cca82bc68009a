"""Log single connections, publishes and errors. See docs/operations.md, "Logs".

The records have ids as fields (``extra``): room, user, device, the name of a key, the id of a
notification. They never contain a payload, a key, a token or the query of a URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256

from ...protocol.control import CloseCode
from ...protocol.rooms import Room, key_of
from ...redaction import redacted_origin
from ..auth.claims import Claims
from ..stores.base import PublishResult

logger = logging.getLogger(__name__)

MAX_LINES_PER_S = 50
"""The maximum rate of one kind of line at ``info``, so that an unauthenticated client cannot fill
the disk. A line says how many were suppressed. Lines at ``debug`` are not limited."""

MAX_LINES_PER_CALLER_S = 10
"""The maximum rate of the lines about one user, key or address, so that one client cannot suppress
the lines of others."""

_MAX_KINDS_S = 4  # how many kinds may use their full rate in one second
_MAX_KINDS = 50
_OTHERS = ("other lines", None)
_CALLER = ("user", "key", "address")

_ROUTINE = {CloseCode.DRAINING, CloseCode.IDLE_TIMEOUT, CloseCode.TOKEN_EXPIRED}


class RateLimitFilter(logging.Filter):
    """Limit the rate of records of each kind, and of each caller.

    A kind is a message with its ``code``. So a flood of one kind does not hide another, and the
    flood of one caller does not hide the records of others. The field ``suppressed`` counts the
    records that were suppressed. The next record of the kind has it, or a summary a second later.
    """

    def __init__(
        self,
        per_s: int,
        per_caller_s: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            per_s: the maximum of each kind, in records a second.
            per_caller_s: the maximum of those with the same user, key or address; None: ``per_s``.
            clock: returns seconds.
        """
        super().__init__()
        self._per_s = per_s
        self._per_caller_s = per_s if per_caller_s is None else per_caller_s
        self._clock = clock
        self._second = 0
        self._kinds: dict[tuple[str, object], int] = {}  # counts of this second
        self._callers: Counter[tuple[object, ...]] = Counter()
        self._suppressed: dict[tuple[str, object], tuple[str, int]] = {}
        self._is_summarizing = False
        self._timer: asyncio.TimerHandle | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO or self._is_summarizing:
            return True
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._kinds.clear()
            self._callers.clear()
        kind = (str(record.msg), getattr(record, "code", None))
        if kind not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            kind = _OTHERS
        caller = next(filter(None, (getattr(record, name, None) for name in _CALLER)), None)
        passed = self._kinds.get(kind, 0)
        is_too_much = passed and sum(self._kinds.values()) >= _MAX_KINDS_S * self._per_s
        if (
            is_too_much
            or passed >= self._per_s
            or self._callers[kind, caller] >= self._per_caller_s
        ):
            _, count = self._suppressed.get(kind, ("", 0))
            self._suppressed[kind] = record.name, count + 1
            self._summarize_later()
            return False
        self._kinds[kind] = passed + 1
        self._callers[kind, caller] += 1
        if kind in self._suppressed:
            record.suppressed = self._suppressed.pop(kind)[1]
        return True

    def _summarize_later(self) -> None:
        """Schedule the summary. Without a loop, the next record of the kind has the count."""
        if self._timer is None:
            with contextlib.suppress(RuntimeError):
                self._timer = asyncio.get_running_loop().call_later(1.0, self._summarize)

    def _summarize(self) -> None:
        self._timer = None
        suppressed, self._suppressed = self._suppressed, {}
        for (message, code), (name, count) in suppressed.items():
            members = {"suppressed": count} if code is None else {"code": code, "suppressed": count}
            line = logging.getLogger(name)
            if line.isEnabledFor(logging.INFO):
                record = line.makeRecord(
                    name, logging.INFO, "", 0, message, (), None, None, members
                )
                self._is_summarizing = True
                try:
                    line.handle(record)
                finally:
                    self._is_summarizing = False


logger.addFilter(RateLimitFilter(MAX_LINES_PER_S, MAX_LINES_PER_CALLER_S))


def log_rejected(
    problem: Mapping[str, str],
    address: str | None,
    room: Room | None,
    claims: Claims | None,
    *,
    origin: str | None = None,
    user: str | None = None,
    close_code: CloseCode | None = None,
    is_routine: bool = False,
) -> None:
    """Log a request, a handshake or a notification of a batch that was rejected.

    Args:
        problem: the body of the error. For a handshake that was accepted and closed: the name of
            the close code, and the cause.
        claims: the claims of the client, if it was authenticated.
        origin: the origin of the page that sent the request.
        user: the user of a token that is no longer valid.
        close_code: the code with which an accepted handshake was closed.
        is_routine: the client did nothing wrong, so the line is for debugging only.
    """
    level = logging.DEBUG if is_routine else logging.INFO
    if logger.isEnabledFor(level):
        # The details of an invalid request may repeat its content.
        details = problem["error" if problem["code"] == "invalid_request" else "details"]
        _write(
            level, "rejected", claims,
            room=room, address=address, code=problem["code"], details=details,
            user=user if claims is None else claims.user,
            origin=None if origin is None else redacted_origin(origin),
            close_code=None if close_code is None else int(close_code),
        )  # fmt: skip


def log_opened(
    room: Room | None, claims: Claims, address: str | None, device: str | None, kind: str
) -> None:
    """Log that a connection was accepted.

    Args:
        room: None if it has many, each of which has a record of its own.
    """
    if logger.isEnabledFor(logging.DEBUG):
        _write(
            logging.DEBUG, "connected", claims,
            room=room, device=device, address=address, transport=kind,
        )  # fmt: skip


def log_closed(
    room: Room | None,
    claims: Claims,
    address: str | None,
    device: str | None,
    code: CloseCode | None,
    details: str,
    lasted_s: float,
) -> None:
    """Log that a connection has ended.

    Args:
        code: the close code, if the server ended the connection.
        details: the cause in words; may be empty.
        lasted_s: the duration of the connection, in seconds.
    """
    level = logging.DEBUG if code is None or code in _ROUTINE else logging.INFO
    if logger.isEnabledFor(level):
        _write(
            level, "disconnected", claims, room=room, device=device, address=address,
            code=None if code is None else int(code),
            reason="gone" if code is None else code.name.lower(), details=details or None,
            lasted_s=round(lasted_s, 3),
        )  # fmt: skip


def log_published(
    claims: Claims,
    results: Iterable[tuple[Room, PublishResult]],
    is_credential: Callable[[str], bool],
) -> None:
    """Log accepted notifications, one line for each room.

    A room or an id is not shown if it contains a credential by mistake.
    """
    for room, result in results:
        _write(
            logging.DEBUG, "published", claims,
            room=None if is_credential(key_of(room)) else room,
            id="…" if is_credential(result.id) else result.id,
            subscribers=result.broadcast_count, duplicate=result.duplicate,
        )  # fmt: skip


def log_revoked(claims: Claims, of: str, name: str, count: int) -> None:
    """Log a revocation. A token id is logged as a digest: it may be a secret elsewhere."""
    shown = name if of == "user" else sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    kind = "user" if of == "user" else "token"
    _write(logging.INFO, "revoked", claims, **{f"revoked_{kind}": shown}, closed=count)


def _write(level: int, message: str, claims: Claims | None, **fields: object) -> None:
    if claims is not None:
        fields = {"user": claims.user, "key": claims.key_name, **fields}
    extra = {name: value for name, value in fields.items() if value is not None}
    logger.log(level, message, extra=extra)
