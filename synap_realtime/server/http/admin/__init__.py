"""The admin page and its API. See docs/operations.md, "The admin page"."""

from __future__ import annotations

from .routes import Admin

__all__ = ["Admin"]
