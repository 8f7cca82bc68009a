"""LocalInngest runs functions served by Flask and Django, given only the app's address."""

from __future__ import annotations

import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import django.conf
import django.core.handlers.asgi
import django.core.handlers.wsgi
import flask
import inngest
import inngest.django
import inngest.flask
import pytest
import werkzeug.serving

from synap_realtime.server.serve import running_server

from .conftest import on, staged

Functions = Sequence[inngest.Function[Any]]
Served = Callable[[inngest.Inngest, Functions], AbstractAsyncContextManager[str]]


@contextmanager
def wsgi(app: Any) -> Iterator[str]:
    """A WSGI app on a server of threads, as under gunicorn."""
    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@asynccontextmanager
async def by_flask(client: inngest.Inngest, functions: Functions) -> AsyncIterator[str]:
    app = flask.Flask(__name__)
    inngest.flask.serve(app, client, list(functions))
    with wsgi(app) as url:
        yield url


@asynccontextmanager
async def by_django_wsgi(client: inngest.Inngest, functions: Functions) -> AsyncIterator[str]:
    route(client, functions)
    with wsgi(django.core.handlers.wsgi.WSGIHandler()) as url:
        yield url


@asynccontextmanager
async def by_django_asgi(client: inngest.Inngest, functions: Functions) -> AsyncIterator[str]:
    route(client, functions)
    async with running_server(django.core.handlers.asgi.ASGIHandler()) as url:
        yield url


def route(client: inngest.Inngest, functions: Functions) -> None:
    if not django.conf.settings.configured:
        django.conf.settings.configure(ALLOWED_HOSTS=["127.0.0.1"], LOGGING_CONFIG=None)
    urls = types.ModuleType("urls")
    vars(urls)["urlpatterns"] = [inngest.django.serve(client, list(functions))]
    django.conf.settings.ROOT_URLCONF = urls


def plain(client: inngest.Inngest, ended: list[Any]) -> inngest.Function[Any]:
    @client.create_function(fn_id="f", trigger=on("go"), retries=1)
    def f(ctx: inngest.ContextSync) -> None:
        def step(n: int) -> int:
            if ctx.attempt == 0:
                raise RuntimeError("not yet")
            return n

        ended.append((ctx.step.run("a", step, 1), ctx.event.data["x"]))

    return f


def coroutine(client: inngest.Inngest, ended: list[Any]) -> inngest.Function[Any]:
    @client.create_function(fn_id="f", trigger=on("go"), retries=1)
    async def f(ctx: inngest.Context) -> None:
        async def step(n: int) -> int:
            if ctx.attempt == 0:
                raise RuntimeError("not yet")
            return n

        ended.append((await ctx.step.run("a", step, 1), ctx.event.data["x"]))

    return f


@pytest.mark.parametrize(
    ("serve", "kind"),
    [
        (by_flask, plain),
        (by_flask, coroutine),
        (by_django_wsgi, plain),
        (by_django_wsgi, coroutine),
        (by_django_asgi, plain),
        (by_django_asgi, coroutine),
    ],
)
async def test_an_app_is_found_by_its_address_alone(
    serve: Served,
    kind: Callable[[inngest.Inngest, list[Any]], inngest.Function[Any]],
) -> None:
    ended: list[Any] = []
    async with staged() as stage, serve(stage.client, [kind(stage.client, ended)]) as url:
        await stage.server.register(f"{url}/api/inngest")
        await stage.send("go", x=2)
        await stage.finish()
    assert ended == [(1, 2)]
