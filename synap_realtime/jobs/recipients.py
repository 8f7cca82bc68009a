"""Who waits for a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgumentError
from ..protocol.rooms import Room, UserId, id_text, request_room, user_room


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who waits, and what they wait for; None if the job does not say.

    An id may be an ``int`` or a UUID; it becomes text. One of another type is a problem.
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
        """The user's and the request's, as text."""
        user_id, request_id = self.user_id, self.request_id
        return (
            None if user_id is None else str(user_id),
            None if request_id is None else str(request_id),
        )

    @classmethod
    def from_data(cls, data: Mapping[str, object]) -> Recipient:
        """From a job's input: ``userId`` and ``requestId``, or ``user_id`` and ``request_id``."""
        return cls(_value(data, "userId", "user_id"), _value(data, "requestId", "request_id"))

    @classmethod
    def from_call(cls, args: Sequence[object], kwargs: Mapping[str, object]) -> Recipient:
        """From a function's arguments: the keyword ones, else the first that is a mapping."""
        for data in (kwargs, *args, *kwargs.values()):
            if isinstance(data, Mapping) and (recipient := cls.from_data(data)) != cls():
                return recipient
        return cls()

    def rooms(self) -> tuple[tuple[Room, ...], list[str]]:
        """The user's room and the request's; and what is wrong with one that is missing."""
        rooms, problems = [], list(self.problems)
        if self.user_id is None and not problems:
            problems.append("it names no user (userId)")
        for parse_room_param, key in ((user_room, self.user_id), (request_room, self.request_id)):
            if key is not None:
                try:
                    rooms.append(parse_room_param(key))
                except InvalidArgumentError as error:
                    problems.append(str(error))
        return tuple(rooms), problems


def _value(data: Mapping[str, object], *names: str) -> Any:
    """The first that is there; its type is checked by :class:`Recipient`."""
    for name in names:
        value = data.get(name)
        if value is not None and value != "":
            return value
    return None
