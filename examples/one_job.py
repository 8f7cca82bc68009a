"""One decorated job, from the request to the user's notifications; everything in one process.

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
        raise JobError("The printer is busy.")  # this text is shown to the user
    return "/reports/7.pdf"


async def main() -> None:
    app = fastapi.FastAPI()
    app.mount("/realtime", create_app())  # the room server, embedded
    local = LocalInngest()
    async with running_server(app) as url, running_server(local) as local_url:
        # An Inngest Dev Server, if one is configured.
        server = os.environ.get("INNGEST_DEV", local_url)
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

            # The browser's part; it may subscribe later.
            room = f"{url.replace('http', 'ws')}/realtime/rooms/request_r1/subscribe"
            async with websockets.connect(room) as socket:
                async for text in socket:
                    message = json.loads(text)
                    print(
                        f"{message['type']:<26} {message['status']}  {json.dumps(message['data'])}"
                    )
                    if message["status"] != "pending":
                        break


if __name__ == "__main__":
    asyncio.run(main())
