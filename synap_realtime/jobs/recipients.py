"""The recipient of a job's notifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgumentError
from ..protocol.rooms import Room, UserId, id_text, request_room, user_room


@dataclass(frozen=True, slots=True)
class Recipient:
    """The user and the request to notify about a run; None where the job names none.

    An id may be an ``int`` or a UUID and is converted to text. Any other type is recorded as a
    problem.
    """

    user_id: UserId | None = None
    request_id: UserId | None = None
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("user_id", "request_id"):
            value = getattr(self, field)
            if value is None:
                continue
            try:
                object.__setattr__(self, field, id_text(field, value))
            except InvalidArgumentError as error:
                object.__setattr__(self, field, None)
                object.__setattr__(self, "problems", (*self.problems, str(error)))

    @property
    def ids(self) -> tuple[str | None, str | None]:
        """Return the user id and the request id as text."""
        user_id, request_id = self.user_id, self.request_id
        return (
            None if user_id is None else str(user_id),
            None if request_id is None else str(request_id),
        )

    @classmethod
    def from_data(cls, data: Mapping[str, object]) -> Recipient:
        """Read ``userId`` and ``requestId`` (or the snake_case names) from a job's input."""
        return cls(_value(data, "userId", "user_id"), _value(data, "requestId", "request_id"))

    @classmethod
    def from_call(cls, args: Sequence[object], kwargs: Mapping[str, object]) -> Recipient:
        """Read the ids from a call's keyword arguments, or from its first mapping."""
        for data in (kwargs, *args, *kwargs.values()):
            if isinstance(data, Mapping) and (recipient := cls.from_data(data)) != cls():
                return recipient
        return cls()

    def rooms(self) -> tuple[tuple[Room, ...], list[str]]:
        """Return the rooms of the user and the request, and the reasons why one is missing."""
        rooms, problems = [], list(self.problems)
        if self.user_id is None and not problems:
            problems.append("the job's data names no user (userId)")
        for parse_room_param, key in ((user_room, self.user_id), (request_room, self.request_id)):
            if key is not None:
                try:
                    rooms.append(parse_room_param(key))
                except InvalidArgumentError as error:
                    problems.append(str(error))
        return tuple(rooms), problems


def _value(data: Mapping[str, object], *names: str) -> Any:
    """Return the first value that is present. :class:`Recipient` checks its type."""
    for name in names:
        value = data.get(name)
        if value is not None and value != "":
            return value
    return None
