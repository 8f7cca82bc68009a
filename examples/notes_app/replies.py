"""Generate replies in a conversation with a model library (pydantic-ai); offline by default."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from synap_realtime.handlers import Message


class ModelResponder:
    """A :class:`Responder` with a pydantic-ai model, or ``offline``."""

    def __init__(self, model: str) -> None:
        self._agent = Agent(
            FunctionModel(stream_function=_offline_model) if model == "offline" else model,
            instructions="You help with notes, tasks and projects. Answer in one short paragraph.",
        )

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        asked = max(i for i, message in enumerate(history) if message.role == "user")
        async with self._agent.run_stream(
            history[asked].content,
            message_history=[_to_model_message(message) for message in history[:asked]],
        ) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                yield piece


def _to_model_message(message: Message) -> ModelMessage:
    if message.role == "user":
        return ModelRequest(parts=[UserPromptPart(content=message.content)])
    return ModelResponse(parts=[TextPart(content=message.content)])


async def _offline_model(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
    """A model without network that repeats the user's words one by one.

    ``#long`` asks for some thousand characters in about 30 s, ``#no-reply`` for a failure.
    """
    prompts = [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]
    if "#no-reply" in prompts[-1]:
        raise RuntimeError("the message asked the offline model to fail")
    words = len(prompts[-1].split())
    text = (
        f"I read your {words} words, “{prompts[-1][:80]}”. This is message {len(prompts)} of our "
        "conversation. (I am the offline model: set NOTES_MODEL to a real one.)"
    )
    pause_s = 0.01
    if "#long" in prompts[-1]:
        text, pause_s = f"{text}\n\n{long_text()}", 0.04
    for word in text.split(" "):
        yield f"{word} "
        await asyncio.sleep(pause_s)


def long_text() -> str:
    """Return about 4,000 characters, with some outside of ASCII and of the basic plane."""
    return "\n\n".join(
        f"{number}. A reply grows word by word: reload the page, close the tab or restart the "
        "server meanwhile, and it goes on where it was 🚀. Nothing is lost, “nothing” comes twice."
        for number in range(1, 25)
    )
