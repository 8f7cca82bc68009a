"""Who waits for a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InvalidArgumentError
from ..protocol.rooms import Room, request_room, user_room


@dataclass(frozen=True, slots=True)
class Person:
    """Who waits, and what they wait for; None if the job does not say."""

    user_id: str | None = None
    request_id: str | None = None

    @classmethod
    def of(cls, data: Mapping[str, object]) -> Person:
        """From a job's input: ``userId`` and ``requestId``, or ``user_id`` and ``request_id``."""
        return cls(_text(data, "userId", "user_id"), _text(data, "requestId", "request_id"))

    @classmethod
    def of_call(cls, args: Sequence[object], kwargs: Mapping[str, object]) -> Person:
        """From a function's arguments: the keyword ones, else the first that is a mapping."""
        for data in (kwargs, *args, *kwargs.values()):
            if isinstance(data, Mapping) and (person := cls.of(data)) != cls():
                return person
        return cls()

    def rooms(self) -> tuple[tuple[Room, ...], list[str]]:
        """The user's room and the request's; and what is wrong with one that is missing."""
        rooms, problems = [], []
        if self.user_id is None:
            problems.append("it names no user (userId)")
        for room_of, key in ((user_room, self.user_id), (request_room, self.request_id)):
            if key is not None:
                try:
                    rooms.append(room_of(key))
                except InvalidArgumentError as error:
                    problems.append(str(error))
        return tuple(rooms), problems


def _text(data: Mapping[str, object], *names: str) -> str | None:
    for name in names:
        value = data.get(name)
        if isinstance(value, str) and value:
            return value
    return None
