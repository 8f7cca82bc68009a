"""Serves Inngest's functions with Flask and Django."""

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
import werkzeug.serving

from synap_realtime.server.serve import running_server

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
