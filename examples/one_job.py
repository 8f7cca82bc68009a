"""One decorated job, from the request to what its user hears; everything in one process.

::

    $ .venv/bin/python -m examples.one_job
    report.creation.started    pending  {"runId": "…", "attempt": 1, "maxAttempts": 5, …
    report.creation.retrying   pending  {"runId": "…", "attempt": 2, "maxAttempts": 5, …
    report.creation.completed  success  {"url": "/reports/7.pdf"}
"""

from __future__ import annotations

import asyncio
import json
import os

import fastapi
import inngest
import inngest.fast_api
import websockets

from synap_realtime import BackgroundBroadcaster, JobError
from synap_realtime.integrations.inngest import create_function
from synap_realtime.integrations.inngest.local import LocalInngest
from synap_realtime.server import create_app
from synap_realtime.server.serve import running_server


async def render(attempt: int) -> str:
    if attempt == 0:
        raise JobError("The printer is busy.")  # the user may read this
    return "/reports/7.pdf"


async def main() -> None:
    app = fastapi.FastAPI()
    app.mount("/realtime", create_app())  # the room server, embedded
    local = LocalInngest()
    async with running_server(app) as url, running_server(local) as local_url:
        server = os.environ.get("INNGEST_DEV", local_url)  # an Inngest Dev Server, if there is one
        client = inngest.Inngest(
            app_id="reports", is_production=False, api_base_url=server, event_api_base_url=server
        )
        async with BackgroundBroadcaster(f"{url}/realtime") as broadcaster:

            @create_function(
                client,
                job_type="report.creation",
                fn_id="create-report",
                trigger=inngest.TriggerEvent(event="report.creation.requested"),
                broadcaster=broadcaster,
            )
            async def create_report(ctx: inngest.Context) -> dict[str, object]:
                return {"url": await ctx.step.run("render", render, ctx.attempt)}

            inngest.fast_api.serve(app, client, [create_report])
            await local.register(f"{url}/api/inngest")
            data = {"userId": "42", "requestId": "r1"}
            await client.send(inngest.Event(name="report.creation.requested", data=data))

            # What the browser does; it may come late.
            room = f"{url.replace('http', 'ws')}/realtime/rooms/request_r1/subscribe"
            async with websockets.connect(room) as socket:
                async for text in socket:
                    heard = json.loads(text)
                    print(f"{heard['type']:<26} {heard['status']}  {json.dumps(heard['data'])}")
                    if heard["status"] != "pending":
                        break


if __name__ == "__main__":
    asyncio.run(main())
