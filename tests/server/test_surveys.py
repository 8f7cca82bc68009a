"""Questions to all nodes, with stores that answer for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from synap_realtime.server.stores.base import Survey, SurveyHandler
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.surveys import Surveys


class SharedStore(MemoryStore):
    """Of several nodes: the others answer as the test says."""

    def __init__(self, survey: Survey) -> None:
        super().__init__()
        self.result = survey
        self.handler: SurveyHandler

    def answer_surveys(self, handler: SurveyHandler) -> None:
        self.handler = handler

    async def survey(self, question: str, arguments: Mapping[str, Any]) -> Survey:
        return self.result


def count(answer: Mapping[str, Any]) -> int:
    return int(answer["count"])


def surveys(survey: Survey) -> Surveys:
    subject = Surveys(SharedStore(survey))
    subject.register("count", lambda arguments: {"count": arguments["n"]})
    return subject


async def test_alone_a_node_answers_completely() -> None:
    subject = Surveys(MemoryStore())
    subject.register("count", lambda arguments: {"count": arguments["n"]})
    answers = await subject.ask("count", {"n": 3}, count)
    assert (answers.all, answers.marks()) == ([3], {})


@pytest.mark.parametrize(
    ("survey", "found", "marks"),
    [
        (Survey({"b": {"count": 2}}, 1), [1, 2], {}),
        (Survey({"b": {"count": 2, "of a newer version": []}}, 1), [1, 2], {}),
        (Survey({}, 0), [1], {}),
        (Survey({}, 2), [1], {"partial": {"answered": 1, "nodes": 3}}),
        (Survey({"b": {}}, 1), [1], {"partial": {"answered": 1, "nodes": 2}}),
        (Survey({"b": {"count": None}}, 1), [1], {"partial": {"answered": 1, "nodes": 2}}),
        (Survey({"b": {"count": "x"}}, 1), [1], {"partial": {"answered": 1, "nodes": 2}}),
        (Survey({"b": {"count": 2}}, None), [1, 2], {"partial": {"answered": 2, "nodes": None}}),
    ],
)
async def test_missing_answers_are_marked(
    survey: Survey, found: list[int], marks: dict[str, Any]
) -> None:
    answers = await surveys(survey).ask("count", {"n": 1}, count)
    assert (answers.all, answers.marks()) == (found, marks)


def test_unknown_question_has_no_answer() -> None:
    store = SharedStore(Survey({}, 0))
    Surveys(store).register("known", lambda _: {})
    assert store.handler("known", {}) == {}
    assert store.handler("of a newer version", {}) is None
