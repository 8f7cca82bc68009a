"""The result of a check, and its text without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

_USER_INFO = re.compile(r"//[^/@\s]*@")
_SHORTEST = 6  # redacting a shorter one would mask parts of ordinary words


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ``ok``; ``warn``: it works with a restriction, or was not checked; ``fail``: it does
            not work.
        check: the subject, one or two words.
        found: the result.
        advice: how to fix it; empty if there is nothing to fix.
        page: the address of the page that explains it; empty if nothing is wrong.
    """

    level: Literal["ok", "warn", "fail"]
    check: str
    found: str
    advice: str = ""
    page: str = ""

    def __str__(self) -> str:
        text = f"{self.found}; {self.advice}" if self.advice else self.found
        link = f" ({self.page})" if self.page else ""
        return f"{self.level:<4}  {self.check:<13}  {text}{link}"


def of_server(finding: Finding) -> Finding:
    """Label a finding about a local server's settings. The application may use another server, with
    other settings.
    """
    return replace(finding, found=f"settings of serve here: {finding.found}")


def redact(finding: Finding, secrets: Iterable[str]) -> Finding:
    """Return the finding without any of the secrets, and without credentials in addresses."""
    found, advice = (_USER_INFO.sub("//…@", text) for text in (finding.found, finding.advice))
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        if len(secret) >= _SHORTEST:
            found, advice = found.replace(secret, "…"), advice.replace(secret, "…")
    return replace(finding, found=found, advice=advice)
