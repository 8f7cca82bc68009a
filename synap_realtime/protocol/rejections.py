"""What the body of a rejection says. See PROTOCOL.md, "Errors"."""

from __future__ import annotations


def reason_of(body: object) -> str | None:
    """Return the room server's reason; None if the body is not that of a room server's error."""
    match body:
        case {"error": str(error), "details": str(details)}:
            return f"{error}: {details}"
        case {"error": str(error)}:
            return error
    return None


def blames_credential(body: object) -> bool:
    """Return whether the body of an error says that another key or token is needed.

    The code ``forbidden`` alone does not say so: a foreign origin, an address and the authorizer
    have it, too. PROTOCOL.md therefore fixes how the details begin if the credential is the cause.
    """
    match body:
        case {"error": "Forbidden", "details": str(details)}:
            return details.startswith(("the token ", "the key "))
    return False
