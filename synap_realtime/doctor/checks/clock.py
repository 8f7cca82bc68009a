"""Compare this machine's clock with those of the servers that responded."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from ..context import CheckContext
from ..finding import Finding

_RESOLUTION_S = 2.0  # a header has whole seconds, and servers may cache it for a second


_NTP = "check that NTP runs (timedatectl; chronyc tracking)"
_FIX = "run NTP on both machines (timedatectl set-ntp true)"


async def check_clocks(context: CheckContext) -> AsyncGenerator[Finding]:
    """Compare the clocks. With an offset above the leeway, tokens become valid too late or expire
    early.
    """
    if not context.clock_offsets:
        yield Finding("warn", "clock", "not compared: no server sent its time", _NTP)
    offsets = sorted(context.clock_offsets, key=lambda offset: abs(offset.ahead_s))
    for worst in {offset.host: offset for offset in offsets}.values():
        yield rate_offset(worst.host, worst.ahead_s, context.token_leeway_s)


def rate_offset(host: str, ahead_s: float, leeway_s: float) -> Finding:
    """Rate an offset by the leeway that tokens have."""
    if abs(ahead_s) <= max(leeway_s / 2, _RESOLUTION_S):
        return Finding("ok", "clock", f"agrees with {host} within the precision of its header")
    where = "ahead of" if ahead_s > 0 else "behind"
    found = f"{abs(ahead_s):.0f} s {where} {host}"
    if abs(ahead_s) <= max(leeway_s, _RESOLUTION_S):
        return Finding("warn", "clock", f"{found}; tokens have a leeway of {leeway_s:g} s", _FIX)
    return Finding(
        "fail",
        "clock",
        f"{found}, which exceeds the leeway of tokens ({leeway_s:g} s); they are rejected",
        _FIX,
    )


CHECKS = (check_clocks,)
