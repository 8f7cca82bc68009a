"""Decide whether and when to reconnect. Pure: the randomness is injected.

See PROTOCOL.md, "Close codes" and "Clients".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..documentation import Topic, see
from ..endpoint import retry_after_s
from ..errors import SubscriptionError
from ..protocol import rejections
from ..protocol.control import CloseCode

INITIAL_DELAY_S = 1.0
MAX_DELAY_S = 16.0
JITTER = 0.25
STABLE_AFTER_S = 5.0
"""Uptime after which a connection resets the count of reconnects."""

STABLE_WITH_TOKEN_S = 1.0
"""The same for a connection that ended with its token (4401): a short-lived token is normal."""

MAX_RETRY_AFTER_S = 60.0
"""Maximum delay that a server may request."""

_RETRYABLE_STATUSES = (408, 425, 429)
_FOREIGN = (301, 308, 501, 505)
"""The address has moved permanently, or the server is not a room server."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connect failed or a connection ended.

    ``status`` is set for a rejected handshake, ``close_code`` for a closed connection; neither if
    the server was unreachable or the connection was cut. ``retry_after_s`` is the delay that the
    server requested.
    """

    reason: str
    status: int | None = None
    close_code: int | None = None
    retry_after_s: float | None = None
    is_expired: bool = False
    """The token of a function has expired; the function may return a new one."""
    is_permanent: bool = False
    """Only a configuration change can help."""

    @property
    def is_final(self) -> bool:
        """Whether reconnecting is pointless, by the server's code or the configuration."""
        if self.is_expired or self.is_permanent:
            return self.is_permanent
        if self.status is not None:
            if self.status in _FOREIGN:
                return True
            return 400 <= self.status <= 499 and self.status not in _RETRYABLE_STATUSES
        # 1009 is equivalent to 4540: this client sent something that no server accepts.
        return self.close_code is not None and (self.close_code >= 4500 or self.close_code == 1009)

    @property
    def code(self) -> int | None:
        return self.status or self.close_code

    @property
    def topic(self) -> Topic:
        """The page of the documentation that explains it."""
        if self.status == 401 or self.close_code == CloseCode.UNAUTHORIZED:
            return Topic.CREDENTIALS
        if self.status == 403:
            return Topic.PERMISSIONS
        return Topic.NO_CONNECTION if self.close_code is None else Topic.CLOSE_CODES


class ReconnectPolicy:
    """Counts consecutive reconnects and computes the delay before the next."""

    def __init__(self, attempts: int | None, random: Callable[[], float]) -> None:
        """Create a policy. ``max_reconnects`` None means no limit; ``random`` returns numbers from
        0 to 1.
        """
        self._attempts = attempts
        self._random = random
        self.count = 0

    def delay_after(self, failure: Failure, up_s: float, shown: str) -> float:
        """Return seconds to wait before the next reconnect.

        Args:
            failure: what happened.
            up_s: how long the connection was up; 0 if there was none.
            shown: the server and the source of its address, for the error.

        Raises:
            SubscriptionError: no reconnect may follow.
        """
        if failure.is_final:
            link = see(failure.topic)
            raise SubscriptionError(f"{shown}: {failure.reason}{link}", code=failure.code)
        ended_with_token = failure.close_code == CloseCode.TOKEN_EXPIRED
        if up_s >= (STABLE_WITH_TOKEN_S if ended_with_token else STABLE_AFTER_S):
            self.count = 0
        if self._attempts is not None and self.count >= self._attempts:
            raise SubscriptionError(
                f"{shown}: {failure.reason} (gave up after {self.count} attempts to reconnect)"
                f"{see(failure.topic)}",
                code=failure.code,
                retriable=True,
            )
        delay = min(MAX_DELAY_S, INITIAL_DELAY_S * (1 << min(self.count, 10)))
        self.count += 1
        if failure.close_code is not None and failure.retry_after_s is not None:
            # A draining server spreads its clients itself, so its delay may be 0.
            return min(failure.retry_after_s, MAX_RETRY_AFTER_S)
        asked = min(failure.retry_after_s or 0.0, MAX_RETRY_AFTER_S)
        return max(delay, asked) * (1 + JITTER * self._random())


def explain_expiry(failure: Failure, *, is_renewable: bool) -> Failure:
    """Note that a handshake was rejected because a token expired.

    Args:
        is_renewable: whether a function may return another token.
    """
    if failure.status != 401 or not is_renewable:
        return failure
    return replace(failure, is_expired=re.search(r"\bexpired\b", failure.reason) is not None)


def from_http_response(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Describe a handshake whose response was not a WebSocket upgrade."""
    reason = f"the server answered {status}"
    try:
        answer = json.loads(body or b"")
    except (ValueError, RecursionError):
        answer = None
    if (given := rejections.reason_of(answer)) is not None:
        reason += f": {given}"
    if 300 <= status < 400:
        # Redirects are not followed, because they would send the token to another address.
        to = (headers.get("Location") or "nowhere").partition("?")[0]
        reason += f" and redirects to {to}; set the URL to where the room server is"
    elif status == 401 or rejections.blames_credential(answer):
        reason += "; check the token (token=)"
    elif status in (404, 405, 426, 501, 505) or status < 300:
        reason += "; check the URL: is it a room server?"
    return Failure(
        _printable(reason), status=status, retry_after_s=retry_after_s(headers.get("Retry-After"))
    )


def from_close_frame(code: int, reason: str) -> Failure:
    """Describe a closed connection; 1006 is one that was cut."""
    text = "the connection was cut" if code == 1006 else f"the server closed with {code}"
    return Failure(_printable(f"{text}: {reason}" if reason else text), close_code=code)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:300])
