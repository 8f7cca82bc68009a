"""An app that serves Inngest functions beside an ordinary view, under any server.

``INNGEST_URL`` is the Inngest server, ``REALTIME_URL`` the room server, ``KIND`` the functions'.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from typing import Any

import fastapi
import flask
import inngest
import inngest.fast_api
import inngest.flask
from starlette.concurrency import run_in_threadpool

from synap_realtime import bind_reporter, delta, progress
from synap_realtime.broadcast import background_broadcaster
from synap_realtime.integrations.inngest import create_function

client = inngest.Inngest(
    app_id="app",
    is_production=False,
    api_base_url=os.environ["INNGEST_URL"],
    event_api_base_url=os.environ["INNGEST_URL"],
)


def say(what: str, doc: object) -> None:
    """Text keeps all that is said; of progress only the last in a tenth of a second goes out."""
    delta(f"{what} {doc};")
    progress(0.5, f"{what} {doc}")


def view(user: str) -> str:
    """For another user than those whose functions this process runs."""
    say("view", user)
    background_broadcaster().flush()
    return "ok"


def _late(context: contextvars.Context, over: threading.Event, doc: object) -> None:
    over.wait(20)
    context.run(say, "late", doc)


def _step(doc: object, n: int) -> int:
    say(f"step{n}", doc)
    time.sleep(0.02)  # so that views run meanwhile
    thread = threading.Thread(target=bind_reporter(say), args=[f"thread{n}", doc])
    thread.start()
    thread.join()
    unbound = threading.Thread(target=say, args=["unbound", doc])
    unbound.start()
    unbound.join()
    return n


@create_function(
    client,
    job_type="report.creation",
    fn_id="sync",
    trigger=inngest.TriggerEvent(event="sync"),
    retries=1,
)
def sync(ctx: inngest.ContextSync) -> str:
    doc = ctx.event.data["userId"]
    over = threading.Event()
    thread = threading.Thread(target=_late, args=[contextvars.copy_context(), over, doc])
    thread.start()
    try:
        for n in range(3):
            ctx.step.run(f"step{n}", _step, doc, n)
        if ctx.attempt == 0:
            raise RuntimeError("once")
        say("end", doc)
        return str(doc)
    finally:
        threading.Timer(0.05, over.set).start()


@create_function(
    client,
    job_type="report.creation",
    fn_id="async",
    trigger=inngest.TriggerEvent(event="async"),
    retries=1,
)
async def async_(ctx: inngest.Context) -> str:
    doc = ctx.event.data["userId"]

    async def step(n: int) -> int:
        say(f"step{n}", doc)
        await asyncio.sleep(0.02)
        await asyncio.to_thread(say, f"thread{n}", doc)
        return n

    for n in range(3):
        await ctx.step.run(f"step{n}", step, n)
    if ctx.attempt == 0:
        raise RuntimeError("once")
    say("end", doc)
    return str(doc)


# One kind: with a single coroutine among them, Flask runs each in a context of its own.
FUNCTIONS: list[inngest.Function[Any]] = [sync if os.environ["KIND"] == "sync" else async_]

app = flask.Flask(__name__)
inngest.flask.serve(app, client, FUNCTIONS)
app.get("/view/<user>")(view)

asgi = fastapi.FastAPI()
inngest.fast_api.serve(asgi, client, FUNCTIONS)


@asgi.get("/view/{user}")
async def async_view(user: str) -> str:
    say("view", user)
    return await run_in_threadpool(view, user)
