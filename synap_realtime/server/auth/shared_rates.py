"""The rates of publishers over all nodes that share a store.

A node takes a part of a rate from the store ahead of its use, and renews it together with a
publish. So a publish costs no additional round trip, except for the first of a caller, large ones,
and those near the limit.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from ..errors import StoreUnavailableError
from ..stores.base import RateDemand, SharedRateStore

LEASE_SHARE = 50
"""A node takes this part of a second's amount ahead, and renews it when half of that is left: it
holds at most 1.5 times as much."""

_RENEWAL_PAUSE_S = 0.01  # after a renewal for which the rate had too little left


class _Lease:
    """What a node holds of the rates of one caller.

    Attributes:
        left: for each rate, what is left of it; infinite if the rate has no limit.
        free_at: for each rate, the earliest time at which a cost of 0 is allowed.
        renewed: done at the end of the request that renews the lease, with its error if the store
            is away; None if none does.
        renew_at: not before this time.
    """

    __slots__ = ("free_at", "left", "renew_at", "renewed")

    def __init__(self, per_s: Sequence[int]) -> None:
        self.left: list[float] = [0 if each else math.inf for each in per_s]
        self.free_at = [0.0] * len(per_s)
        self.renewed: asyncio.Future[None] | None = None
        self.renew_at = 0.0

    def take(self, costs: Sequence[int]) -> bool:
        """Take costs from what is left: all of them, or none."""
        left = self.left
        for number, cost in enumerate(costs):
            if cost > left[number]:
                return False
        for number, cost in enumerate(costs):
            left[number] -= cost
        return True


class SharedRates:
    """Several rates of each caller, such as notifications and bytes. A caller takes from all."""

    def __init__(
        self,
        store: SharedRateStore,
        per_s: Mapping[str, int],
        *,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            per_s: the amount a second of each rate, by its name; 0 is no limit.
            most: the maximum number of callers whose leases are kept.
        """
        self._store = store
        self._names = list(per_s)
        self._per_s = list(per_s.values())
        self._limited = [number for number, each in enumerate(self._per_s) if each]
        self._amounts = [max(1, each // LEASE_SHARE) for each in self._per_s]
        self._low = [each // 2 for each in self._amounts]
        self._most = most
        self._clock = clock
        self._leases: OrderedDict[str, _Lease] = OrderedDict()
        self._renewals: set[asyncio.Task[Sequence[float]]] = set()

    def take_leased(self, who: str, costs: Sequence[int]) -> bool:
        """Take costs from what this node holds. Return False if that is too little.

        Args:
            costs: for each rate.
        """
        lease = self._leases.get(who)
        if lease is None or not lease.take(costs):
            return False
        if lease.renewed is None and self._is_low(lease) and self._clock() >= lease.renew_at:
            loop = asyncio.get_running_loop()
            lease.renewed = loop.create_future()
            nothing = [0] * len(costs)
            renewal = loop.create_task(self._request(who, lease, nothing, lease.renewed))
            self._renewals.add(renewal)
            renewal.add_done_callback(self._renewal_ended)
        return True

    async def take(self, who: str, costs: Sequence[int]) -> Sequence[float]:
        """Take costs. Return for each rate how long to wait, in seconds; 0 if it has enough.

        Unless all are 0, nothing was taken. A cost over a second's amount counts as that amount.

        Raises:
            StoreUnavailableError: nothing is known of the rates now.
        """
        costs = [
            min(cost, per_s) if per_s else 0 for cost, per_s in zip(costs, self._per_s, strict=True)
        ]
        lease = self._leases.get(who)
        if lease is None:
            lease = self._leases[who] = _Lease(self._per_s)
            if len(self._leases) > self._most:
                self._leases.popitem(last=False)
        self._leases.move_to_end(who)
        if lease.renewed is not None:
            await asyncio.shield(lease.renewed)  # if the store is away, it is not asked once more
            if lease.take(costs):
                return [0.0] * len(costs)
        waits = self._known_waits(lease, costs)
        if any(waits):
            return waits
        renewed = None
        if lease.renewed is None:
            renewed = lease.renewed = asyncio.get_running_loop().create_future()
        return await self._request(who, lease, costs, renewed)

    def _known_waits(self, lease: _Lease, costs: Sequence[int]) -> list[float]:
        """Return the waits that follow from the last answer of the store, without asking it."""
        now = self._clock()
        waits = [0.0] * len(costs)
        for number in self._limited:
            lacking = costs[number] - lease.left[number]
            if lacking > 0:
                allowed_at = lease.free_at[number] + lacking / self._per_s[number]
                waits[number] = max(0.0, allowed_at - now)
        return waits

    async def _request(
        self,
        who: str,
        lease: _Lease,
        costs: Sequence[int],
        renewed: asyncio.Future[None] | None,
    ) -> Sequence[float]:
        """Take costs, partly from the lease, and renew the lease.

        Args:
            renewed: that of the lease; None if another request renews it.
        """
        used = list(map(min, costs, lease.left))
        demands = []
        for number in self._limited:
            lease.left[number] -= used[number]
            is_low = lease.left[number] <= self._low[number]
            demands.append(
                RateDemand(
                    self._names[number],
                    self._per_s[number],
                    costs[number] - int(used[number]),
                    self._amounts[number] if renewed and is_low else 0,
                )
            )
        now = self._clock()
        is_granted = False
        problem: StoreUnavailableError | None = None
        try:
            grant = await self._store.take_rates(who, demands)
            is_granted = not any(grant.waits_s)
        except StoreUnavailableError as error:
            problem = error
            raise
        finally:
            if not is_granted:
                for number in self._limited:
                    lease.left[number] += used[number]
            if renewed is not None:
                lease.renewed = None
                _finish(renewed, problem)
        waits = [0.0] * len(costs)
        for number, demand, wait_s in zip(self._limited, demands, grant.waits_s, strict=True):
            waits[number] = wait_s
            if wait_s:
                lease.free_at[number] = now + wait_s - demand.cost / demand.per_s
            elif is_granted and grant.is_ahead:
                lease.left[number] += demand.ahead
        if not grant.is_ahead:
            lease.renew_at = now + _RENEWAL_PAUSE_S
        return waits

    def _is_low(self, lease: _Lease) -> bool:
        left, low = lease.left, self._low
        return any(left[number] <= low[number] for number in self._limited)

    def _renewal_ended(self, renewal: asyncio.Task[Sequence[float]]) -> None:
        self._renewals.discard(renewal)
        # Without the store, the next publish that needs it is answered 503.
        if not renewal.cancelled() and not isinstance(renewal.exception(), StoreUnavailableError):
            renewal.result()


def _finish(renewed: asyncio.Future[None], problem: StoreUnavailableError | None) -> None:
    if problem is None:
        renewed.set_result(None)
    else:
        renewed.set_exception(problem)
        renewed.exception()  # retrieved: nobody may be waiting
