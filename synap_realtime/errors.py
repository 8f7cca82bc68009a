"""The errors that this package raises.

::

    SynapRealtimeError
    ├── InvalidArgumentError   a wrong argument; names the field. Also a ValueError
    ├── ConfigurationError     a setting is invalid; names the setting to change
    ├── BroadcastError         BroadcastResult.raise_for_status() on a failed broadcast
    ├── ReadError              jobs could not be read: rejected, or the server is unreachable
    ├── SubscriptionError      a subscription ended: rejected, or too many attempts
    └── JobError               a job failed, and its message is meant for the user
        └── InvalidInputError  the job's input is wrong, so a retry cannot help
"""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)


class SynapRealtimeError(Exception):
    """The base class of all errors that this package raises deliberately.

    It and its subclasses, including those of an application, can be pickled and copied, whatever
    the arguments of their constructors are.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # By default, unpickling calls the class with the message alone. A process pool breaks for
        # all later calls when it receives an exception that cannot be unpickled.
        return _rebuild, (type(self), self.args), dict(self.__dict__)


def _rebuild(kind: type[E], args: tuple[Any, ...]) -> E:
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class InvalidArgumentError(SynapRealtimeError, ValueError):
    """An argument is invalid. A retry cannot help.

    Attributes:
        field: the argument's name, as the caller writes it (``"user_id"``, ``"data"``).
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class ConfigurationError(SynapRealtimeError):
    """A setting, or a combination of settings, is invalid."""


class BroadcastError(SynapRealtimeError):
    """A notification was not accepted. The message names the server and the cause."""


class SubscriptionError(SynapRealtimeError):
    """A subscription has ended. The message names the cause and the fix.

    Attributes:
        code: the HTTP status of a rejected handshake (400 to 599), or the close code of a
            connection (1000 to 4999); None if the server was unreachable or timed out.
        retriable: True if the attempts are used up, and the same call may succeed later; False if
            the server told the client not to reconnect.

    See PROTOCOL.md, "Close codes" and "Clients".
    """

    def __init__(self, message: str, *, code: int | None = None, retriable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retriable = retriable


class ReadError(SynapRealtimeError):
    """The jobs of a user, or of a request, could not be read. The message names cause and fix.

    Attributes:
        code: the HTTP status of the response (400 to 599); None if there was none.
        retriable: whether the same call may succeed later.
    """

    def __init__(self, message: str, *, code: int | None = None, retriable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retriable = retriable


class JobError(SynapRealtimeError):
    """An attempt of a job failed, and the message may be shown to the user.

    The framework may retry. The user sees the message only after the last attempt. Any other
    exception is shown to the user as "Something went wrong", never with its own text.
    """


class InvalidInputError(JobError):
    """The input of the job is wrong. A retry cannot help, so the job fails immediately."""


def deciding_error(error: BaseException) -> BaseException:
    """Return the exception of a group, including nested groups, that decides the outcome of a job.

    That is the first :class:`InvalidInputError`, since a retry cannot help whatever else failed;
    else the first :class:`JobError`, since it has a text for the user; else ``error`` itself, as
    for an exception that is not a group.
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
