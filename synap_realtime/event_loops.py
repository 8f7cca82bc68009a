"""The event loop that the asynchronous functions need."""

from __future__ import annotations

import asyncio

from .errors import ConfigurationError


def running_loop(feature: str, instead: str) -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio.

    Args:
        feature: what needs it, as the subject of a sentence.
        instead: what to call where there is none.

    Raises:
        ConfigurationError: none is running: another library (trio, curio) runs the code, or it is
            a child that was forked inside of a running loop.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            f"{feature} needs a running asyncio event loop, and there is none here (under trio, "
            f"and in a child process that was forked inside of a loop): {instead}"
        ) from None
