"""Find the event loop that the asynchronous functions need."""

from __future__ import annotations

import asyncio

from .errors import ConfigurationError


def running_loop(feature: str, instead: str) -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio.

    Args:
        feature: the name of what needs the loop, for the message.
        instead: the function to call without a loop.

    Raises:
        ConfigurationError: no loop is running: another library (trio, curio) runs the code, or the
            process was forked inside of a running loop.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            f"{feature} needs a running asyncio event loop, and there is none here (under trio, "
            f"and in a child process that was forked inside of a loop): {instead}"
        ) from None
