"""What a check found, and how it is said without a secret in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

_USER_INFO = re.compile(r"//[^/@\s]*@")
_SHORTEST = 6  # hiding a shorter one would make holes in ordinary words


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ``ok``; ``warn``: it works, or was not looked at; ``fail``: it does not work.
        check: what was looked at, one word or two.
        found: what was found.
        advice: what to do; empty if nothing.
    """

    level: Literal["ok", "warn", "fail"]
    check: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        told = f"{self.found}; {self.advice}" if self.advice else self.found
        return f"{self.level:<4}  {self.check:<13}  {told}"


Report = Callable[[Finding], None]
"""Where a check leaves what it found, at once: what breaks later takes nothing away."""


def of_server(say: Report) -> Report:
    """Label what is found in the settings of a local server: the server that the application talks
    to may be another one, with other settings."""
    return lambda finding: say(replace(finding, found=f"settings of serve here: {finding.found}"))


def redact(finding: Finding, secrets: Iterable[str]) -> Finding:
    """The finding without any of the secrets, and without users and passwords in addresses.

    No check puts one in. But what others say is shown, and a server may echo what it was sent.
    """
    found, advice = (_USER_INFO.sub("//…@", text) for text in (finding.found, finding.advice))
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        if len(secret) >= _SHORTEST:
            found, advice = found.replace(secret, "…"), advice.replace(secret, "…")
    return replace(finding, found=found, advice=advice)
