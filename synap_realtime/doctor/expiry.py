"""How long a certificate is still good."""

from __future__ import annotations

from .finding import Finding

SOON_S = 14 * 86400.0
"""A certificate that ends before should have been renewed by now."""


def check_expiry(check: str, whose: str, left_s: float) -> Finding:
    """
    Args:
        whose: ``of rooms.example.com``, or the name of a file.
        left_s: less than 0: it is no longer good.
    """
    if left_s <= 0:
        found = f"{whose}: it has ended {-left_s / 86400:.0f} days ago"
        return Finding("fail", check, found, "renew it")
    found = f"{whose}: good for {left_s / 86400:.0f} days"
    if left_s < SOON_S:
        return Finding("warn", check, found, "renew it; see why nothing has renewed it yet")
    return Finding("ok", check, found)
