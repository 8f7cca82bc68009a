"""Store a user's message in a conversation, and generate the reply."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import TypedDict

from ..jobs import JobRun, delta
from ..jobs.job_types import CONVERSATION_MESSAGE
from ..protocol.payloads import ResponseGenerated
from . import validation
from .ports import Message, Services

logger = logging.getLogger(__name__)

FALLBACK_REPLY = "I could not write a reply just now. Please try again in a moment."
REPLY_TIMEOUT_S = 60.0
"""Maximum seconds between two pieces of a reply, and before the first."""


class _Reply(TypedDict):
    response: str
    fallback: bool


async def handle_conversation_message(run: JobRun, services: Services) -> ResponseGenerated:
    """Append the user's ``content`` to ``conversationId`` (or ``threadId``), then append a reply.

    The reply is published while it is generated (``conversation.response.delta``). If the responder
    fails, a fallback text is the reply, and the payload says so.

    Raises:
        InvalidInputError: the message is empty, or names no conversation.
    """
    user_id = validation.user_of(run)
    content = validation.text(run.data, "content", label="The message")
    key = "conversationId" if run.data.get("conversationId") is not None else "threadId"
    conversation_id = validation.text(run.data, key, label="The conversation's ID", limit=200)
    asked = Message(
        id=validation.stable_id(run, "message"),
        conversation_id=conversation_id,
        user_id=user_id,
        role="user",
        content=content,
    )

    async def append_asked() -> None:
        await services.messages.append(asked)

    async def generate() -> _Reply:
        history = _up_to(asked, await services.messages.history(conversation_id, user_id))
        try:
            reply = await _show(services.responder.reply(history))
        except Exception as error:  # noqa: BLE001 - the user gets a reply whatever the responder raises
            logger.warning(
                "run %s: responder failed: %r; sending the fallback reply", run.run_id, error
            )
            reply = ""
        if not reply.strip():
            return {"response": FALLBACK_REPLY, "fallback": True}
        return {"response": reply, "fallback": False}

    await run.step("append-user-message", append_asked)
    reply = await run.step("generate-reply", generate)
    answer = Message(
        id=validation.stable_id(run, "reply"),
        conversation_id=conversation_id,
        user_id=user_id,
        role="assistant",
        content=reply["response"],
    )

    async def append_answer() -> None:
        await services.messages.append(answer)

    await run.step("append-reply", append_answer)
    generated = ResponseGenerated(
        conversation_id=conversation_id,
        thread_id=conversation_id,
        user_message_id=asked.id,
        assistant_message_id=answer.id,
        response=answer.content,
        fallback=reply["fallback"],
    )
    await run.send_event(
        "publish-generated",
        CONVERSATION_MESSAGE.completed,
        {**generated.model_dump(by_alias=True), "userId": user_id, "requestId": run.request_id},
    )
    return generated


async def _show(pieces: AsyncIterator[str]) -> str:
    """Publish a reply while it is generated; return the whole text."""
    text = ""
    while True:
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return text
        delta(piece)
        text += piece


def _up_to(asked: Message, history: Sequence[Message]) -> Sequence[Message]:
    """Return the history up to this message; a later one may have been stored since."""
    ids = [message.id for message in history]
    return history[: ids.index(asked.id) + 1] if asked.id in ids else history
