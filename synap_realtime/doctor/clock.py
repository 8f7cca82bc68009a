"""This machine's clock against those of the servers that answered."""

from __future__ import annotations

from .context import CheckContext
from .finding import Finding, Report

_RESOLUTION_S = (
    2.0  # less cannot be told from a header with whole seconds, which servers renew each second
)


async def check(subject: CheckContext, say: Report) -> None:
    """A clock that is wrong by more than the leeway makes tokens count too late, or no longer."""
    if not subject.dates:
        say(Finding("warn", "clock", "not compared: no server told its time", _NTP))
    worst = {dated.host: dated for dated in sorted(subject.dates, key=lambda d: abs(d.ahead_s))}
    for dated in worst.values():
        say(compare(dated.host, dated.ahead_s, subject.token_leeway_s))


_NTP = "see that NTP runs (timedatectl; chronyc tracking)"


def compare(host: str, ahead_s: float, leeway_s: float) -> Finding:
    """How bad a difference is, for tokens that may be off by the leeway."""
    if abs(ahead_s) <= max(leeway_s / 2, _RESOLUTION_S):
        return Finding("ok", "clock", f"agrees with {host}, as far as its whole seconds tell")
    where = "ahead of" if ahead_s > 0 else "behind"
    found = f"{abs(ahead_s):.0f} s {where} {host}"
    if abs(ahead_s) <= max(leeway_s, _RESOLUTION_S):
        return Finding("warn", "clock", f"{found}, of {leeway_s:g} s that tokens may be off", _FIX)
    return Finding(
        "fail", "clock", f"{found}: tokens may be off by {leeway_s:g} s, and are refused", _FIX
    )


_FIX = "run NTP on both machines (timedatectl set-ntp true)"
