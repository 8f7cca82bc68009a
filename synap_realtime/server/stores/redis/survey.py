"""Ask all nodes that share a store a question, and collect their answers.

A question goes to one channel, which every node receives; each answer goes to a channel of the node
that has asked. The list of nodes says who has to answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import from_json

from ...errors import StoreUnavailableError
from ..base import Survey, SurveyHandler
from .keys import KeySpace
from .scripts import SEND

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.0
"""The longest time to wait for answers."""

MAX_QUESTION_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 256 * 1024
"""A longer answer is not sent: it would fill the output buffer of the asking node."""

MAX_OPEN = 500
"""The maximum number of questions that a node waits for at a time. A further one is not asked."""


def knows_nothing(question: str, arguments: Mapping[str, Any]) -> None:
    """Handle the questions for a store that no server has subscribed to."""


class _Question:
    """A question that is not answered by all nodes yet.

    Attributes:
        answers: what has arrived; None if the node has no answer.
        asked: the other nodes; None until they are known.
        complete: done when all have answered.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Mapping[str, Any] | None] = {}
        self.asked: set[str] | None = None
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(self) -> None:
        if (
            self.asked is not None
            and self.asked <= self.answers.keys()
            and not self.complete.done()
        ):
            self.complete.set_result(None)


class RedisSurveys:
    """The questions of one node, and its answers to those of others.

    Messages are JSON objects. A node ignores members that it does not know.
    """

    def __init__(
        self,
        keys: KeySpace,
        node: str,
        call: Callable[..., asyncio.Future[Any]],
        list_nodes: Callable[[], Awaitable[set[str]]],
    ) -> None:
        """
        Args:
            call: calls a script with keys and arguments.
            list_nodes: returns the nodes that are alive.
        """
        self._keys = keys
        self._node = node
        self._call = call
        self._list_nodes = list_nodes
        self._handler: SurveyHandler = knows_nothing
        self._open: dict[str, _Question] = {}
        self.channels: dict[bytes, Callable[[bytes], None]] = {
            keys.questions: self._on_question,
            keys.answers(node): self._on_answer,
        }
        """The channels that the node has to subscribe to, and what handles their messages."""

    def answer_by(self, handler: SurveyHandler) -> None:
        self._handler = handler

    async def ask(self, question: str, arguments: Mapping[str, Any]) -> Survey:
        """See :meth:`SurveyStore.survey`."""
        id = secrets.token_hex(8)
        message = {"id": id, "from": self._node, "question": question, "arguments": arguments}
        text = json.dumps(message, separators=(",", ":")).encode()
        if len(text) > MAX_QUESTION_BYTES or len(self._open) >= MAX_OPEN:
            logger.warning(
                "the other nodes were not asked: too many questions are open, or this one is too "
                "long; question=%s open=%d bytes=%d",
                question, len(self._open), len(text),
            )  # fmt: skip
            return Survey({}, None)
        opened = self._open[id] = _Question()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                listed, _ = await asyncio.gather(
                    self._list_nodes(), self._send(self._keys.questions, text)
                )
                opened.asked = listed - {self._node}
                opened.note()
                await opened.complete
        except (TimeoutError, StoreUnavailableError):
            pass  # the result says who is missing
        finally:
            del self._open[id]
        answers = {node: answer for node, answer in opened.answers.items() if answer is not None}
        asked = None if opened.asked is None else len(opened.asked | opened.answers.keys())
        return Survey(answers, asked)

    def _send(self, channel: bytes, text: bytes) -> asyncio.Future[Any]:
        return self._call(SEND, (channel,), text)

    def _on_question(self, payload: bytes) -> None:
        try:
            message = from_json(payload, allow_inf_nan=False)
            id, sender = str(message["id"]), str(message["from"])
            channel = self._keys.answers(sender)
            question, arguments = str(message["question"]), dict(message["arguments"])
        except (ValueError, TypeError, KeyError):
            logger.warning("a question of another node is malformed; ignoring it")
            return
        if sender == self._node:
            return
        answer: Mapping[str, Any] | None = None
        try:
            answer = self._handler(question, arguments)
        except Exception:  # a broken handler must not stop the messages of rooms
            logger.exception("a question of another node failed; question=%s", question)
        reply = {"id": id, "node": self._node, "answer": answer}
        text = json.dumps(reply, separators=(",", ":")).encode()
        if len(text) > MAX_ANSWER_BYTES:
            logger.warning("an answer is too long; question=%s bytes=%d", question, len(text))
            text = json.dumps({**reply, "answer": None}).encode()
        sent = self._send(channel, text)
        sent.add_done_callback(_ignore_failure)

    def _on_answer(self, payload: bytes) -> None:
        try:
            message = from_json(payload, allow_inf_nan=False)
            opened, node = self._open.get(message["id"]), str(message["node"])
            answer = message["answer"]
        except (ValueError, TypeError, KeyError):
            logger.warning("an answer of another node is malformed; ignoring it")
            return
        if opened is not None and node != self._node:
            opened.answers[node] = answer if isinstance(answer, dict) else None
            opened.note()


def _ignore_failure(sent: asyncio.Future[Any]) -> None:
    """The asking node waits a second, and then reports that this one is missing."""
    if not sent.cancelled():
        sent.exception()
