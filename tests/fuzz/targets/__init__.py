"""The targets by name, imported only when run, so that atheris can instrument their imports."""

from __future__ import annotations

from importlib import import_module

from ..target import Target

NAMES = (
    "http",
    "asgi",
    "websocket",
    "notification",
    "token",
    "jwks",
    "answer",
    "subscriber",
    "nodes",
    "rooms",
)


def load(name: str) -> Target:
    """Import and set up one target."""
    target: Target = import_module(f"{__name__}.{name}").TARGET()
    return target
