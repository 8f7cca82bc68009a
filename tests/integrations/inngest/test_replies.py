"""A reply that grows piece by piece, in steps of an Inngest function that fail."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import inngest
import pytest

from synap_realtime import delta, get_job, progress
from tests.support.readers import watch
from tests.support.served_stores import KINDS, serving_store

from .conftest import reporting_function, staged

PIECES = 1200


@pytest.mark.parametrize("store", KINDS)
async def test_everyone_gets_the_whole_reply_of_the_attempt_that_counts(
    tmp_path: Path, store: str
) -> None:
    calls: dict[str, int] = {}

    async def write(step: str) -> str:
        calls[step] = attempt = calls.get(step, 0) + 1
        chance = random.Random(f"{step}{attempt}")
        text = ""
        for number in range(PIECES):
            piece = chance.choice([f"{step}{attempt} ", "tok", "é", "😀", "\n", '"', "token "])
            delta(piece)
            text += piece
            if number % 3 == 0:
                await asyncio.sleep(0.002)
            if number == PIECES // 3 and attempt < 3:
                raise RuntimeError("The model is overloaded.")
        return text

    async def body(ctx: inngest.Context) -> dict[str, Any]:
        delta("Thinking… ")
        await ctx.step.run("plan", write, "plan")
        progress(0.5, "Answering")
        return {"text": await ctx.step.run("answer", write, "answer")}

    async with serving_store(store, tmp_path) as rooms, staged(rooms) as stage:
        await stage.serve(reporting_function(stage, body))
        readers = [asyncio.create_task(watch(stage.rooms_url, "r1", n)) for n in range(8)]
        await stage.send("f", userId="42", requestId="r1")
        states = await asyncio.gather(*readers)
        whole = states[0].result["text"]
        assert [state.status for state in states] == ["success"] * len(states)
        assert [state.text.encode() for state in states] == [whole.encode()] * len(states)
        assert "answer3 " in whole
        assert not any(other in whole for other in ("answer1 ", "answer2 ", "plan"))
        job = await get_job("r1", stage.rooms_url)
        assert job is not None
        assert (job.status, job.text, job.label) == ("completed", whole, "Answering")
