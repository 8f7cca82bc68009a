"""How a function is called: at its address, or by the worker that has connected for it."""

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
    """Calls functions, each where it is."""

    def __init__(self, client: httpx.AsyncClient, register: Callable[[object], object]) -> None:
        """Make a caller.

        Args:
            client: reaches the apps that have an address.
            register: takes the functions of a worker that connects.
        """
        self._client = client
        self._gateway = _gateway(register)
        self.routes: Sequence[BaseRoute] = self._gateway.routes if self._gateway else ()

    async def ready(self, function: Function) -> None:
        """Wait until there is somebody to call. That is no attempt, as on Inngest."""
        if gateway := self._gateway_of(function):
            await gateway.ready(function)

    async def call(
        self, function: Function, body: dict[str, Any], step_id: str | None
    ) -> sdk.Outcome:
        """Call a function once. Everything that can go wrong is a :class:`.sdk.SdkFailure`.

        Args:
            function: who is called.
            body: the call request: event, events, steps, ctx.
            step_id: the hashed id of the one step to run, in a parallel group.
        """
        if gateway := self._gateway_of(function):
            return await gateway.call(function, body, step_id)
        return await sdk.call_over_http(self._client, function, body, step_id)

    def _gateway_of(self, function: Function) -> Gateway | None:
        return self._gateway if function.is_called_at_worker else None


def _gateway(register: Callable[[object], object]) -> Gateway | None:
    """None without what ``inngest[connect]`` installs: then no worker of ours can connect."""
    try:
        from .gateway import Gateway
    except ImportError:
        return None
    return Gateway(register)
