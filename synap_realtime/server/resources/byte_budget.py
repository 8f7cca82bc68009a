"""Bound the bytes that the server holds for its peers, in total and for each caller.

A limit on the number of connections does not bound memory: the server may hold 2 KiB for one peer
and 1 MiB for another. See PROTOCOL.md, "Limits".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

from ...loopback import is_loopback
from ..auth.claims import Claims
from ..config import ServerSettings
from ..metrics import Metrics
from ..stores.base import Entry

MIN_UNREAD_BYTES = 16 * 1024
"""A response of at least this size is charged to its caller until the peer has read it, as far as
the server can observe that."""


class Holder(Protocol):
    """A connection that the server holds bytes for."""

    def over_budget(self) -> None:
        """Abort the connection, now or soon. Its bytes are no longer counted."""


class Caller(NamedTuple):
    """The user, token, key or address whose connections are counted together.

    Attributes:
        is_bounded: whether the bound for each caller applies. It does not apply to an API key,
            which is trusted, nor to a loopback address, where a proxy forwards all clients.
    """

    name: str
    is_bounded: bool


class NoRoomError(Exception):
    """A byte budget is exhausted.

    Attributes:
        max_bytes: the bound that is reached.
        is_of_caller: whether it is the bound of the caller; else it is the bound of the total.
    """

    def __init__(self, max_bytes: int, *, is_of_caller: bool) -> None:
        super().__init__(max_bytes)
        self.max_bytes = max_bytes
        self.is_of_caller = is_of_caller


NO_CALLER = Caller("", is_bounded=False)
"""The caller of connections that are charged to no budget."""


def caller_of(claims: Claims | None, address: str | None) -> Caller:
    """Return the caller to charge: the key, user or token of a credential, else the address."""
    if claims is not None and (name := claims.caller) is not None:
        return Caller(name, is_bounded=claims.key_name is None)
    return _caller_at(address)


@lru_cache(4096)
def _caller_at(address: str | None) -> Caller:
    is_remote = address is not None and not is_loopback(address)
    return Caller(f"address {address}", is_bounded=is_remote)


class _Account:
    __slots__ = ("bytes", "sizes")

    def __init__(self) -> None:
        self.bytes = 0
        self.sizes: dict[Holder, int] = {}


class ByteBudget:
    """The bytes of one kind that are held for all connections.

    Over the bound, the largest connections of the largest callers are aborted until an eighth of
    the budget is free again. So a connection that holds little is not aborted because of others
    that hold much.

    Attributes:
        bytes: how many bytes are held now.
    """

    def __init__(
        self, max_bytes: int, max_caller_bytes: int, on_cut: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            max_bytes: the bound for all callers together; 0 is no limit.
            max_caller_bytes: the bound for each caller; 0 is no limit.
            on_cut: called for each connection that is aborted.
        """
        self.bytes = 0
        self._max_bytes = max_bytes
        self._max_caller_bytes = max_caller_bytes
        self._on_cut = on_cut
        self._accounts: dict[Caller, _Account] = {}
        self._callers: dict[Holder, Caller] = {}

    def hold(self, holder: Holder, caller: Caller, size: int) -> None:
        """Set how many bytes are held for a connection; 0 removes it.

        The connection may be aborted before this returns.
        """
        more = self._set(holder, caller, size)
        if more > 0:
            account = self._accounts[caller]
            if caller.is_bounded and _is_over(account.bytes, self._max_caller_bytes):
                self._cut_largest(account, account.bytes - self._max_caller_bytes * 7 // 8)
            if _is_over(self.bytes, self._max_bytes):
                self.cut_heaviest(self._excess)

    def reserve(self, holder: Holder, caller: Caller, size: int) -> None:
        """Set how many bytes are held for a connection, without aborting any.

        This is for a mounted app, which cannot abort connections. A caller gets at most as many
        bytes as would remain free for all others. So there is always something left for one more
        caller ("Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", Choudhury and
        Hahne, 1998).

        Raises:
            NoRoomError: the budget is exhausted, and nothing was changed.
        """
        account = self._accounts.get(caller)
        own = 0 if account is None else account.sizes.get(holder, 0)
        of_caller = size if account is None else account.bytes - own + size
        if caller.is_bounded and _is_over(of_caller, self._max_caller_bytes):
            raise NoRoomError(self._max_caller_bytes, is_of_caller=True)
        if self._max_bytes and of_caller > self._max_bytes - (self.bytes - own + size):
            raise NoRoomError(self._max_bytes, is_of_caller=False)
        self._set(holder, caller, size)

    def adjust(self, holder: Holder, size: int) -> None:
        """Change how many bytes are held for a connection that has reserved some."""
        if (caller := self._callers.get(holder)) is not None:
            self._set(holder, caller, size)

    def _set(self, holder: Holder, caller: Caller, size: int) -> int:
        """Set the bytes of a connection, and return the difference to before."""
        if self._callers.get(holder, caller) != caller:
            self.release(holder)
        if size <= 0:
            self.release(holder)
            return 0
        account = self._accounts.get(caller)
        if account is None:
            account = self._accounts[caller] = _Account()
        self._callers[holder] = caller
        more = size - account.sizes.get(holder, 0)
        account.sizes[holder] = size
        account.bytes += more
        self.bytes += more
        return more

    def release(self, holder: Holder) -> None:
        """Remove a connection, if it is counted."""
        caller = self._callers.pop(holder, None)
        if caller is None:
            return
        account = self._accounts[caller]
        size = account.sizes.pop(holder)
        account.bytes -= size
        self.bytes -= size
        if not account.sizes:
            del self._accounts[caller]

    def cut_heaviest(self, excess: Callable[[], int]) -> None:
        """Abort connections of the callers that hold most.

        Args:
            excess: returns how many bytes are over the bound; called again after each caller.
        """
        while self._accounts and (left := excess()) > 0:
            # Free a quarter of each caller that holds about as much as the largest one.
            accounts = sorted(self._accounts.values(), key=_bytes_of, reverse=True)
            least = accounts[0].bytes * 3 // 4
            for account in accounts:
                if left <= 0 or account.bytes < least:
                    break
                self._cut_largest(account, min(left, max(1, account.bytes // 4)))
                left = excess()

    def _excess(self) -> int:
        return self.bytes - self._max_bytes * 7 // 8

    def _cut_largest(self, account: _Account, excess: int) -> None:
        for holder, size in sorted(account.sizes.items(), key=_size_of, reverse=True):
            if excess <= 0:
                break
            excess -= size
            self.release(holder)
            self._on_cut()
            holder.over_budget()


def _bytes_of(account: _Account) -> int:
    return account.bytes


def _size_of(item: tuple[Holder, int]) -> int:
    return item[1]


def _is_over(size: int, most: int) -> bool:
    return bool(most) and size > most


_REFERENCE_BYTES = 100  # the overhead of an entry in one backlog


class BacklogBudget:
    """The notifications in the backlogs of slow consumers.

    A notification in several backlogs is stored once, and counts once in the total. Each caller is
    charged for its own backlogs in full.

    Attributes:
        bytes: how many bytes are held now, in total.
    """

    def __init__(
        self, max_bytes: int, max_caller_bytes: int, on_cut: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            max_bytes: the bound for all subscribers together; 0 is no limit.
            max_caller_bytes: the bound for each caller; 0 is no limit.
            on_cut: called for each subscriber that is closed.
        """
        self.bytes = 0
        self._max_bytes = max_bytes
        self._budget = ByteBudget(0, max_caller_bytes, on_cut)
        self._counts: dict[int, int] = {}  # in how many backlogs an entry is, by its id()

    def add(self, entry: Entry) -> None:
        """Count an entry in one more backlog. Call :meth:`remove` once for each call."""
        key = id(entry)
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        self.bytes += _REFERENCE_BYTES if count else _REFERENCE_BYTES + entry.held_bytes

    def remove(self, entry: Entry) -> None:
        key = id(entry)
        count = self._counts.pop(key) - 1
        if count:
            self._counts[key] = count
            self.bytes -= _REFERENCE_BYTES
        else:
            self.bytes -= _REFERENCE_BYTES + entry.held_bytes

    def hold(self, entry: Entry) -> None:
        """Count an entry of a replay, which is in no backlog. Then call :meth:`release` once."""
        self.add(entry)

    def release(self, entry: Entry) -> None:
        self.remove(entry)

    def charge(self, subscriber: Holder, caller: Caller, size: int) -> None:
        """Set the size of a subscriber's backlog; 0 removes it. Subscribers may be closed."""
        self._budget.hold(subscriber, caller, size)
        if _is_over(self.bytes, self._max_bytes):
            self._budget.cut_heaviest(self._excess)

    def _excess(self) -> int:
        return self.bytes - self._max_bytes * 7 // 8


class Budgets:
    """The budgets of one server.

    Attributes:
        requests: request heads and bodies that are not answered yet.
        responses: responses that the peer has not read yet.
        backlogs: notifications that the subscriber has not read yet.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        most = settings.max_caller_bytes
        self.requests = ByteBudget(
            settings.max_request_bytes, most, metrics.budget_cuts("requests")
        )
        self.responses = ByteBudget(
            settings.max_response_bytes, most, metrics.budget_cuts("responses")
        )
        self.backlogs = BacklogBudget(
            settings.max_backlog_bytes, most, metrics.budget_cuts("backlogs")
        )
        for kind, budget, limit in (
            ("requests", self.requests, settings.max_request_bytes),
            ("responses", self.responses, settings.max_response_bytes),
            ("backlogs", self.backlogs, settings.max_backlog_bytes),
        ):
            metrics.watch_bytes(kind, limit, partial(getattr, budget, "bytes"))

    def total(self) -> int:
        """Return how many bytes of all kinds are held now."""
        return self.requests.bytes + self.responses.bytes + self.backlogs.bytes
