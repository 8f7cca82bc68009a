"""Ask all nodes that share a store. With another store, this node alone answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .stores.base import Store, SurveyStore

_T = TypeVar("_T")

Answer = Mapping[str, Any]
"""The answer of a node, as JSON can express it. Newer nodes may add members."""


@dataclass(frozen=True, slots=True)
class Answers(Generic[_T]):
    """What the nodes have answered.

    Attributes:
        all: the answers, that of this node first.
        nodes: how many nodes there are, with this one; None if the store cannot list them now.
    """

    all: list[_T]
    nodes: int | None = 1

    def marks(self) -> dict[str, Any]:
        """Return the member that marks a response as partial; none if all nodes have answered.

        See PROTOCOL.md, "Several nodes".
        """
        if self.nodes == len(self.all):
            return {}
        return {"partial": {"answered": len(self.all), "nodes": self.nodes}}


class Surveys:
    """The questions that nodes ask each other.

    Each part of a node registers the questions that it answers.
    """

    def __init__(self, store: Store) -> None:
        self._handlers: dict[str, Callable[[Answer], Answer]] = {}
        self._store = store if isinstance(store, SurveyStore) else None
        if self._store is not None:
            self._store.answer_surveys(self._answer)

    def register(self, question: str, handler: Callable[[Answer], Answer]) -> None:
        """Answer a question, given its arguments. The handler must not block."""
        self._handlers[question] = handler

    async def ask(
        self, question: str, arguments: Answer, parse: Callable[[Answer], _T]
    ) -> Answers[_T]:
        """Ask all nodes. Takes about a second at most, and raises nothing.

        Args:
            question: a registered one.
            parse: checks and converts an answer. An answer for which it raises an error counts as
                missing: a node of another version sent it.
        """
        answers = Answers([parse(self._handlers[question](arguments))])
        if self._store is None:
            return answers
        others, asked = await self._store.survey(question, arguments)
        for answer in others.values():
            try:
                answers.all.append(parse(answer))
            except Exception:  # noqa: BLE001, S112 - the result says that an answer is missing
                continue
        return Answers(answers.all, None if asked is None else asked + 1)

    def _answer(self, question: str, arguments: Answer) -> Answer | None:
        handler = self._handlers.get(question)
        return None if handler is None else handler(arguments)
