"""Remove credentials from messages.

An invalid option, variable or path may contain a key, a token or a password that was put there by
mistake. Errors and log lines that repeat such a value pass it through :func:`redacted`.
"""

from __future__ import annotations

import base64
import re

_MASK = "…"
MAX_SHOWN = 1000
"""The maximum length of a text, in characters; the rest is cut off. No error is as long."""

_USERINFO = re.compile(r"//\S*@")
"""User and password of a URL (RFC 3986, section 3.2.1), also where the password holds a slash."""

_QUERY = re.compile(r"([?&#;][\w.~%-]+=)[^&#;\s'\"]+")
_PAIR = re.compile(
    r"((?:token|secret|key|keys|password|passwd|pwd|credential|authorization)s?[\"']?\s*[=:]\s*[\"']?)"
    r"[^\s,;&\"']{8,}",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer)[\s.]+[^\s,;\"']+", re.IGNORECASE)
_JWT = re.compile(r"(?<![A-Za-z0-9_-])e(?:y[A-L]|w[k-r0-3])[\w-]{5,}(?:\.[\w-]*){0,4}")
"""A JWT or a part of one: ``{`` and a quote or white space, in base64."""

_RUN = re.compile(r"[\w+=~@$%^*!-]{24,}")
"""A run of characters that is longer than a word."""
_PIECE = re.compile(r"[A-Za-z0-9+=]{8,}")
"""A piece of a base64 text between slashes. It is redacted if it has upper case, lower case and
digits."""

_UUID = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])", re.I)
_SNAKE = re.compile(r"(?:--)?[a-z]+(?:[_-][a-z]{1,15})+[_-]?[0-9]{0,4}|[A-Z]+(?:_[A-Z]{1,15})+")
"""Words separated by underscores or hyphens: the name of an option or of a file."""


def redacted(text: str) -> str:
    """Return the text without anything that may be a credential.

    That is: passwords and query values of URLs, JWTs, bearer credentials, and runs of characters
    that are as long as a key. UUIDs and words with underscores or hyphens remain, because ids and
    names are needed to find a mistake.
    """
    if len(text) > MAX_SHOWN:
        text = text[:MAX_SHOWN] + _MASK
    text = _USERINFO.sub(f"//{_MASK}@", text)
    text = _QUERY.sub(rf"\1{_MASK}", text)
    text = _BEARER.sub(rf"\1 {_MASK}", text)
    text = _JWT.sub(_MASK, text)
    text = _PAIR.sub(rf"\1{_MASK}", text)
    text = _RUN.sub(_without_key, text)
    return _PIECE.sub(_without_piece, text)


_MAX_ORIGIN = 200  # characters
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?|null")


def redacted_origin(origin: str) -> str:
    """Return an ``Origin`` field for a message.

    It is unchanged if a browser could have sent it (RFC 6454, section 6.2), so that an operator can
    allow it; else redacted.
    """
    shown = origin[:_MAX_ORIGIN]
    return shown if _ORIGIN.fullmatch(shown) else redacted(shown)


def holds_token(text: str) -> bool:
    """Return whether the text contains a JWT, or a part of one.

    An id may start like a JWT by chance, but it does not decode to the beginning of JSON.
    """
    if _JWT.search(text, 0, MAX_SHOWN) is None:  # most ids
        return False
    return any(_begins_as_json(found[0]) for found in _JWT.finditer(text, 0, MAX_SHOWN))


def _begins_as_json(encoded: str) -> bool:
    start = encoded.partition(".")[0][:24]
    decoded = base64.urlsafe_b64decode(start[: len(start) // 4 * 4])
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in decoded)


def _without_key(found: re.Match[str]) -> str:
    run = found[0]
    rest = _UUID.sub("", run)
    if len(rest) < 24 or _SNAKE.fullmatch(run):
        return run
    return _MASK


def _without_piece(found: re.Match[str]) -> str:
    piece = found[0]
    kinds = (str.isupper, str.islower, str.isdigit)
    return _MASK if all(any(map(kind, piece)) for kind in kinds) else piece
