"""A function whose job is reported, for Inngest."""

from __future__ import annotations

import asyncio
from typing import Any

import inngest

from synap_realtime.integrations.inngest import (
    create_function,
)
from tests.integrations.inngest.conftest import Stage, on

REPORT = "report.creation"


def function(stage: Stage, kind: str, body: Any, **options: Any) -> inngest.Function[Any]:
    """One function, as async and as sync code: ``body`` takes the context and does no I/O."""
    decorate = create_function(
        stage.client,
        job_type=REPORT,
        fn_id="f",
        trigger=on("go"),
        broadcaster=stage.broadcaster,
        **options,
    )
    if kind == "sync":
        return decorate(body)

    async def run(ctx: inngest.Context) -> Any:
        result = body(ctx)
        return await result if asyncio.iscoroutine(result) else result

    return decorate(run)
