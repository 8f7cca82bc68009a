"""The errors that callers of this package can meet.

::

    SynapRealtimeError
    ├── InvalidArgumentError   a wrong argument; names the field. Also a ValueError
    ├── ConfigurationError     the settings cannot work; says which to change
    ├── BroadcastError         BroadcastResult.raise_for_status() on a failed broadcast
    ├── SubscriptionError      a subscription ended for good: refused, or too many attempts
    └── JobError               a job failed, and its message is meant for the user
        └── InvalidInputError  the job's input is wrong: no retry can mend it
"""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)


class SynapRealtimeError(Exception):
    """The root: everything that this package raises on purpose.

    It and its subclasses, also those of an application, can be pickled and copied whatever
    arguments they are made with.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is by default rebuilt by a call with its message alone. A pool whose process
        # sends one that cannot be rebuilt is broken for all later calls.
        return _rebuild, (type(self), self.args), dict(self.__dict__)


def _rebuild(kind: type[E], args: tuple[Any, ...]) -> E:
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class InvalidArgumentError(SynapRealtimeError, ValueError):
    """A caller's argument is wrong. Retrying cannot help.

    Attributes:
        field: the argument's name, as the caller writes it (``"user_id"``, ``"data"``).
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class ConfigurationError(SynapRealtimeError):
    """The settings, or the way that parts were put together, cannot work."""


class BroadcastError(SynapRealtimeError):
    """A notification was not accepted. The message says by whom and why."""


class SubscriptionError(SynapRealtimeError):
    """A subscription has ended for good. The message says why, and what to do.

    Attributes:
        code: what ended it: the HTTP status of a refused handshake (400 to 599) or the close code
            of a connection (1000 to 4999); None if the server was not reached or fell silent.
        retriable: True if the attempts are used up, and the same call may succeed later; False if
            the server said not to come back.

    See PROTOCOL.md, "Close codes" and "Clients".
    """

    def __init__(self, message: str, *, code: int | None = None, retriable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retriable = retriable


class JobError(SynapRealtimeError):
    """A job's attempt failed, and the message may be shown to the user.

    The framework may try again; only when it gives up does the user read the message. Any other
    exception reaches the user as "Something went wrong", never with its own text.
    """


class InvalidInputError(JobError):
    """The job's input is wrong. No retry can mend it: the job fails at once."""


def deciding_error(error: BaseException) -> BaseException:
    """Return the exception of a group, nested groups included, that decides what becomes of a job.

    That is the first :class:`InvalidInputError`, since no retry can mend it whatever failed beside
    it; else the first :class:`JobError`, since it has a text for the user; else ``error`` itself,
    as for an exception that is no group.
    """
    members = [error]
    for each in members:
        if isinstance(each, BaseExceptionGroup):
            members += each.exceptions
    for kind in (InvalidInputError, JobError):
        for each in members:
            if isinstance(each, kind):
                return each
    return error
