"""Replies in a conversation, by a model library (pydantic-ai); offline unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence

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
    """See :class:`Responder`. ``model`` is one that pydantic-ai knows, or ``offline``."""

    def __init__(self, model: str) -> None:
        self._agent = Agent(
            FunctionModel(_offline_model) if model == "offline" else model,
            instructions="You help with notes, tasks and projects. Answer in one short paragraph.",
        )

    async def reply(self, history: Sequence[Message]) -> str:
        asked = max(i for i, message in enumerate(history) if message.role == "user")
        result = await self._agent.run(
            history[asked].content,
            message_history=[_to_model_message(message) for message in history[:asked]],
        )
        return result.output


def _to_model_message(message: Message) -> ModelMessage:
    if message.role == "user":
        return ModelRequest(parts=[UserPromptPart(content=message.content)])
    return ModelResponse(parts=[TextPart(content=message.content)])


def _offline_model(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    """A model that needs no network: it says what it was asked, and how often before."""
    prompts = [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]
    if "#no-reply" in prompts[-1]:
        raise RuntimeError("the offline model was asked to be silent")
    words = len(prompts[-1].split())
    return ModelResponse(
        parts=[
            TextPart(
                f"I read your {words} words, “{prompts[-1][:80]}”. This is message "
                f"{len(prompts)} of our conversation. (I am the offline model: set NOTES_MODEL to "
                "a real one.)"
            )
        ]
    )
