"""Evaluate conditions on events, in CEL, as Inngest does."""

from __future__ import annotations

from typing import Any

from ....extras import needed_by


class ExpressionError(Exception):
    """The condition cannot be evaluated; the message contains it and the reason."""


def matches(expression: str, **variables: Any) -> bool:
    """Return whether a condition holds. A member that an event does not have makes it false.

    Args:
        expression: CEL, such as ``event.data.userId == async.data.userId``.
        variables: the variables of the expression.

    Raises:
        ExpressionError: it is not CEL, or uses an unknown variable.
    """
    return evaluate(expression, **variables) is True


def evaluate(expression: str, **variables: Any) -> object:
    """Return the value of an expression; None if an event lacks a member that it uses.

    Raises:
        ExpressionError: it is not CEL, or uses an unknown variable.
    """
    with needed_by("LocalInngest", "local"):
        import cel  # slow to import, and needed only for conditions

    try:
        value: object = cel.evaluate(expression, variables)
    except KeyError:
        return None
    except (ValueError, TypeError, RuntimeError) as error:
        raise ExpressionError(f"condition {expression!r} cannot be evaluated: {error}") from error
    return value
