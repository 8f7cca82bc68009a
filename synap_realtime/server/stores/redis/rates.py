"""Rates of callers that all nodes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ..base import RateDemand, RateGrant
from .keys import KeySpace
from .scripts import TAKE_RATES


async def take_rates(
    keys: KeySpace,
    call: Callable[..., asyncio.Future[Any]],
    caller: str,
    demands: Sequence[RateDemand],
) -> RateGrant:
    """See :meth:`SharedRateStore.take_rates`.

    Args:
        call: calls a script with keys and arguments.
    """
    arguments: list[int] = []
    for demand in demands:
        arguments += (demand.per_s, demand.cost, demand.ahead)
    names = [demand.name for demand in demands]
    is_ahead, *waits_us = await call(TAKE_RATES, keys.rates(caller, names), *arguments)
    return RateGrant([int(each) / 1_000_000 for each in waits_us], is_ahead == b"1")
