"""Reply in a conversation without a model and without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from ..handlers import Message


class OfflineResponder:
    """A :class:`Responder` that repeats the user's words one by one."""

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """See :class:`Responder`."""
        prompts = [message.content for message in history if message.role == "user"]
        async for piece in offline_reply(prompts):
            yield piece


async def offline_reply(prompts: Sequence[str]) -> AsyncIterator[str]:
    """Reply to the last of a user's messages.

    ``#long`` asks for some thousand characters in about 30 s, ``#no-reply`` for a failure.
    """
    if "#no-reply" in prompts[-1]:
        raise RuntimeError("the message asked for a failure")
    words = len(prompts[-1].split())
    text = (
        f"I read your {words} words, “{prompts[-1][:80]}”. This is message {len(prompts)} of our "
        "conversation. (No model wrote this. The tutorial “Replies of a language model” has one.)"
    )
    pause_s = 0.05
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
