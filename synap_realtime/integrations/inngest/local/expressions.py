"""Conditions on events, in CEL, as Inngest writes them."""

from __future__ import annotations

from typing import Any

from ....extras import needed_by


class ExpressionError(Exception):
    """A condition that cannot be evaluated; the message holds it and says why."""


def matches(expression: str, **variables: Any) -> bool:
    """Whether a condition holds. A member that an event does not have makes it false.

    Args:
        expression: CEL, such as ``event.data.userId == async.data.userId``.
        variables: what it may name.

    Raises:
        ExpressionError: it is not CEL, or names something else.
    """
    return evaluate(expression, **variables) is True


def evaluate(expression: str, **variables: Any) -> object:
    """The value of an expression; None where it names a member that an event does not have.

    Raises:
        ExpressionError: it is not CEL, or names something else.
    """
    with needed_by("LocalInngest", "local"):
        import cel  # loads slowly, and only conditions need it

    try:
        value: object = cel.evaluate(expression, variables)
    except KeyError:
        return None
    except (ValueError, TypeError, RuntimeError) as error:
        raise ExpressionError(f"condition {expression!r} cannot be evaluated: {error}") from error
    return value
