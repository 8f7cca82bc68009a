"""The operator's page, and what it asks. See README.md, "The operator's page"."""

from __future__ import annotations

from .routes import Admin

__all__ = ["Admin"]
