"""What a rejection says about the credential. See PROTOCOL.md, "Errors"."""

from __future__ import annotations


def blames_credential(body: object) -> bool:
    """Return whether the body of an error says that another key or token is needed.

    The code ``forbidden`` alone does not say so: a foreign origin, an address and the authorizer
    have it, too. PROTOCOL.md therefore fixes how the details begin if the credential is the cause.
    """
    match body:
        case {"error": "Forbidden", "details": str(details)}:
            return details.startswith(("the token ", "the key "))
    return False
