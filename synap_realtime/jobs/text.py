"""Text that is not a ``str``: lazy translations."""

from __future__ import annotations


def as_text(value: object) -> str | None:
    """Return the text of a ``str``, or of an object that stands for one; None for anything else.

    Lazy strings (Django's ``gettext_lazy``, Flask-Babel's ``LazyString``) have a string's methods
    without being one. A ``str`` subclass gives its plain text, whatever its ``__str__`` says.

    Raises:
        Exception: what a lazy string raises when it is evaluated.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if callable(getattr(value, "casefold", None)):
        text = str(value)
        return str.__str__(text)
    return None
