"""Generate replies in a conversation with a model library (pydantic-ai); offline by default."""

from __future__ import annotations

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

from synap_realtime.demo.replies import offline_reply
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
    """A model without network that repeats the user's words one by one."""
    prompts = [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]
    async for piece in offline_reply(prompts):
        yield piece
