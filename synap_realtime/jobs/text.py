"""Convert text that is not a ``str``, such as lazy translations."""

from __future__ import annotations


def as_text(value: object) -> str | None:
    """Return the text of a ``str`` or of a lazy string; None for any other object.

    Lazy strings (Django's ``gettext_lazy``, Flask-Babel's ``LazyString``) have a string's methods
    without being a ``str``. A ``str`` subclass returns its plain text, whatever its ``__str__``
    returns.

    Raises:
        Exception: whatever a lazy string raises when it is evaluated.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if callable(getattr(value, "casefold", None)):
        text = str(value)
        return str.__str__(text)
    return None
