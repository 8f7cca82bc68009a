"""Compare this machine's clock with those of the servers that responded."""

from __future__ import annotations

from .context import CheckContext
from .finding import Finding, Report

_RESOLUTION_S = 2.0  # a header has whole seconds, and servers may cache it for a second


async def check(subject: CheckContext, report: Report) -> None:
    """Compare the clocks. With an offset above the leeway, tokens become valid too late or expire
    early.
    """
    if not subject.dates:
        report(Finding("warn", "clock", "not compared: no server sent its time", _NTP))
    worst = {dated.host: dated for dated in sorted(subject.dates, key=lambda d: abs(d.ahead_s))}
    for dated in worst.values():
        report(compare(dated.host, dated.ahead_s, subject.token_leeway_s))


_NTP = "check that NTP runs (timedatectl; chronyc tracking)"


def compare(host: str, ahead_s: float, leeway_s: float) -> Finding:
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


_FIX = "run NTP on both machines (timedatectl set-ntp true)"
