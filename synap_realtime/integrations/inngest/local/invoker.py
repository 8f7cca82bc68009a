"""Call a function: at its address, or on the worker that has registered it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import httpx
from starlette.routing import BaseRoute

from . import sdk
from .registry import Function

if TYPE_CHECKING:
    from .gateway import Gateway


class FunctionInvoker:
    """Calls functions over HTTP or through the gateway."""

    def __init__(self, client: httpx.AsyncClient, register: Callable[[object], object]) -> None:
        """Create an invoker.

        Args:
            client: reaches the apps that have an address.
            register: registers the functions of a worker that connects.
        """
        self._client = client
        self._gateway = _gateway(register)
        self.routes: Sequence[BaseRoute] = self._gateway.routes if self._gateway else ()

    async def ready(self, function: Function) -> None:
        """Wait until a worker can be called. As on Inngest, waiting is not an attempt."""
        if gateway := self._gateway_of(function):
            await gateway.ready(function)

    async def call(
        self, function: Function, body: dict[str, Any], step_id: str | None
    ) -> sdk.Outcome:
        """Call a function once. Every failure becomes a :class:`.sdk.SdkFailure`.

        Args:
            function: the function to call.
            body: the call request: event, events, steps, ctx.
            step_id: the hashed id of the one step to run, in a parallel group.
        """
        if gateway := self._gateway_of(function):
            return await gateway.call(function, body, step_id)
        return await sdk.call_over_http(self._client, function, body, step_id)

    def _gateway_of(self, function: Function) -> Gateway | None:
        return self._gateway if function.is_called_at_worker else None


def _gateway(register: Callable[[object], object]) -> Gateway | None:
    """Create the gateway; None without ``inngest[connect]``, which a connecting worker needs."""
    try:
        from .gateway import Gateway
    except ImportError:
        return None
    return Gateway(register)
