"""LocalInngest runs functions served by Flask and Django, given only the app's address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import inngest
import inngest.django
import inngest.flask
import pytest

from tests.integrations.inngest.frameworks import (
    Served,
    by_django_asgi,
    by_django_wsgi,
    by_flask,
)

from .conftest import on, staged


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
