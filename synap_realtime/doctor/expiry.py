"""Rate the expiry of a certificate."""

from __future__ import annotations

from .finding import Finding

SOON_S = 14 * 86400.0
"""A certificate that expires within this time should have been renewed already."""


def rate_expiry(check: str, whose: str, left_s: float) -> Finding:
    """Return the finding about the expiry of a certificate.

    Args:
        whose: ``of rooms.example.com``, or the name of a file.
        left_s: seconds until it expires; negative if it has expired.
    """
    if left_s <= 0:
        found = f"{whose}: expired {-left_s / 86400:.0f} days ago"
        return Finding("fail", check, found, "renew it")
    found = f"{whose}: expires in {left_s / 86400:.0f} days"
    if left_s < SOON_S:
        return Finding("warn", check, found, "renew it; check the automatic renewal")
    return Finding("ok", check, found)
