"""Inngest functions that tell their user: started, retrying, completed, failed."""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import inngest
from pydantic import BaseModel

from ... import handlers
from ...broadcast import AsyncBroadcaster, Broadcaster
from ...errors import ConfigurationError, InvalidArgumentError
from ...jobs import Family, JobRun, Lifecycle, family
from ...jobs.lifecycle import readable_error
from ...protocol.notification import Notification
from .run import InngestRun, is_final, readable_failure, to_inngest
from .sender import sender, sender_sync

logger = logging.getLogger(__name__)

DEFAULT_RETRIES = 4
"""Inngest's own, where a function does not say."""

_FAILED_EVENT = "inngest/function.failed"

Trigger = inngest.TriggerEvent | inngest.TriggerCron
Handler = Callable[[Any], Any]
Failure = Callable[[Any], Any]
Context = inngest.Context | inngest.ContextSync


def create_function(
    client: inngest.Inngest,
    *,
    family: Family | str,
    fn_id: str,
    trigger: Trigger | list[Trigger],
    broadcaster: AsyncBroadcaster | Broadcaster | None = None,
    retries: int | None = None,
    on_failure: Failure | None = None,
    middleware: Sequence[Any] = (),
    **options: Any,
) -> Callable[[Handler], inngest.Function[Any]]:
    """``client.create_function``, for a function whose user hears how it stands.

    The user hears ``{family}.started``; ``{family}.retrying`` when an attempt of a step or of the
    function failed and another will come; then exactly one of ``{family}.completed`` with what the
    function returned, or ``{family}.failed`` when Inngest has given up. The user is the event's
    ``data.userId``, the request its ``data.requestId`` (or ``user_id``, ``request_id``). An event
    without a user is logged, and the function runs.

    A notification that cannot be delivered never fails the function.

    ::

        @create_function(client, family="report.creation", fn_id="create-report",
                         trigger=inngest.TriggerEvent(event="report.creation.requested"))
        async def create_report(ctx: inngest.Context) -> dict[str, object]:
            return {"url": await ctx.step.run("render", render)}

    Args:
        client: the Inngest client.
        family: the name before the dot, or a :class:`Family`.
        broadcaster: an :class:`AsyncBroadcaster` for an async function, a :class:`Broadcaster` for
            another; default: the server of ``REALTIME_URL``.
        on_failure: the function's own failure handler; it runs after the user was told.
        options: everything else that ``client.create_function`` takes.

    Raises:
        ConfigurationError: the broadcaster or the failure handler does not fit the function, or
            the function takes batches of events.
    """
    told = Family(family) if isinstance(family, str) else family

    def decorate(handler: Handler) -> inngest.Function[Any]:
        _check_fit(handler, on_failure, options)
        conductor = _Conductor(
            told,
            max_attempts=(DEFAULT_RETRIES if retries is None else retries) + 1,
            is_serialized="output_type" in options and client._serializer is not None,
        )
        if inspect.iscoroutinefunction(handler):
            run, failed, telling = _wrap_async(handler, on_failure, conductor, broadcaster)
        else:
            run, failed, telling = _wrap_sync(handler, on_failure, conductor, broadcaster)
        return client.create_function(
            fn_id=fn_id,
            trigger=trigger,
            retries=retries,
            on_failure=failed,
            middleware=[*middleware, telling],
            **options,
        )(run)

    return decorate


def create_functions(
    client: inngest.Inngest,
    services: handlers.Services,
    broadcaster: AsyncBroadcaster | None = None,
    *,
    retries: int | None = None,
) -> list[inngest.Function[Any]]:
    """The five handlers as Inngest functions, to pass to Inngest's ``serve``.

    Each is triggered by its family's event (``note.creation.requested``, …,
    ``conversation.message.sent``).

    Args:
        client: the Inngest client.
        services: what the handlers need from the application.
        broadcaster: default: the server of ``REALTIME_URL``.
        retries: how often a failed step is tried again; default: Inngest's (3).
    """
    return [
        _job(client, services, broadcaster, retries, told, handler)
        for told, handler in (
            (family.NOTE_CREATION, handlers.handle_note_creation),
            (family.TASK_CREATION, handlers.handle_task_creation),
            (family.TASK_COMPLETION, handlers.handle_task_completion),
            (family.PROJECT_CREATION, handlers.handle_project_creation),
            (family.CONVERSATION_MESSAGE, handlers.handle_conversation_message),
        )
    ]


def _job(
    client: inngest.Inngest,
    services: handlers.Services,
    broadcaster: AsyncBroadcaster | None,
    retries: int | None,
    told: Family,
    handler: Callable[[JobRun, handlers.Services], Awaitable[BaseModel]],
) -> inngest.Function[Any]:
    @create_function(
        client,
        family=told,
        fn_id=told.name.replace(".", "-"),
        trigger=inngest.TriggerEvent(event=told.requested),
        broadcaster=broadcaster,
        retries=retries,
    )
    async def run(ctx: inngest.Context) -> dict[str, Any]:
        payload = await handler(InngestRun(ctx), services)
        return payload.model_dump(mode="json", by_alias=True, exclude_none=True)

    return run


def _check_fit(handler: Handler, on_failure: Failure | None, options: dict[str, Any]) -> None:
    is_async = inspect.iscoroutinefunction(handler)
    if on_failure is not None and inspect.iscoroutinefunction(on_failure) is not is_async:
        raise ConfigurationError("on_failure: must be async if the function is, and only then")
    if options.get("batch_events") is not None:
        raise ConfigurationError(
            "batch_events: only one event's user could be told; use client.create_function"
        )


class _Conductor:
    """Which notification is due when: pure, shared by the async and the sync wrapper."""

    def __init__(self, told: Family, *, max_attempts: int, is_serialized: bool) -> None:
        self._family = told
        self._max_attempts = max_attempts
        self._is_serialized = is_serialized

    def before(self, ctx: Context) -> Notification | None:
        if ctx.attempt > 0 or _memos.get() > 0:
            return None
        return Lifecycle(self._family, ctx.run_id).started()

    def after_error(
        self,
        ctx: Context,
        result: inngest.TransformOutputResult,
    ) -> Notification | None:
        """What an error of a step, or of the function, tells; it goes on as Inngest must see it."""
        error = result.error
        if error is None or ctx.event.name == _FAILED_EVENT:
            return None
        result.error = to_inngest(error)
        next_attempt = ctx.attempt + 2
        if is_final(error) or next_attempt > self._max_attempts:
            return None  # Inngest calls the failure handler, and that tells the user
        part = f"{f'step:{result.step.id}' if result.step else 'run'}:{_memos.get()}"
        reason = readable_error(error, ctx.run_id)
        lifecycle = Lifecycle(self._family, ctx.run_id)
        return lifecycle.retrying(next_attempt, self._max_attempts, reason, part)

    def after_return(self, ctx: Context, result: object) -> Notification | None:
        """The terminal notification; None if the SDK is about to refuse the result."""
        lifecycle = Lifecycle(self._family, ctx.run_id)
        if not self._is_serialized:
            try:
                json.dumps(result)
            except (TypeError, ValueError, RecursionError):
                return None
        try:
            return lifecycle.completed(_as_payload(result))
        except InvalidArgumentError as error:
            logger.warning("run %s: its result is not told: %s", ctx.run_id, error)
            return lifecycle.completed({})

    def failed(self, ctx: Context) -> tuple[inngest.Event, Notification | None]:
        """What an ``inngest/function.failed`` event tells, and about whose event."""
        data: Any = ctx.event.data
        original = inngest.Event(name=data["event"]["name"], data=data["event"].get("data") or {})
        if _memos.get() > 0:
            return original, None
        run_id = data["run_id"]
        reason = readable_failure(data.get("error"), run_id)
        return original, Lifecycle(self._family, run_id).failed(reason)


def _as_payload(result: object) -> Mapping[str, Any] | BaseModel:
    if isinstance(result, Mapping | BaseModel):
        return result
    return {} if result is None else {"result": result}


def _wrap_async(
    handler: Handler,
    on_failure: Failure | None,
    conductor: _Conductor,
    broadcaster: AsyncBroadcaster | Broadcaster | None,
) -> tuple[Handler, Failure, Any]:
    if isinstance(broadcaster, Broadcaster):
        raise ConfigurationError("broadcaster: an async function needs an AsyncBroadcaster")
    send = sender(broadcaster)

    @functools.wraps(handler)
    async def run(ctx: inngest.Context) -> Any:
        if (notification := conductor.before(ctx)) is not None:
            await send(ctx.event, notification)
        result = await handler(ctx)
        if (last := conductor.after_return(ctx, result)) is not None:
            # Not through a step: that would make Inngest replay the function once more, and run
            # again what stands after its last step. A repeat has the same id, and is dropped.
            await send(ctx.event, last)
        return result

    async def failed(ctx: inngest.Context) -> Any:
        event, notification = conductor.failed(ctx)
        if notification is not None:
            await send(event, notification)
        return None if on_failure is None else await on_failure(ctx)

    class Telling(_Telling, inngest.Middleware):
        async def transform_input(self, ctx: Context, function: Any, steps: Any) -> None:
            self.begin(ctx, function, steps)

        async def transform_output(self, result: inngest.TransformOutputResult) -> None:
            if (notification := conductor.after_error(self.ctx, result)) is not None:
                await send(self.ctx.event, notification)

    return run, failed, Telling


def _wrap_sync(
    handler: Handler,
    on_failure: Failure | None,
    conductor: _Conductor,
    broadcaster: AsyncBroadcaster | Broadcaster | None,
) -> tuple[Handler, Failure, Any]:
    if isinstance(broadcaster, AsyncBroadcaster):
        raise ConfigurationError("broadcaster: a function that is not async needs a Broadcaster")
    send = sender_sync(broadcaster)

    @functools.wraps(handler)
    def run(ctx: inngest.ContextSync) -> Any:
        if (notification := conductor.before(ctx)) is not None:
            send(ctx.event, notification)
        result = handler(ctx)
        if (last := conductor.after_return(ctx, result)) is not None:
            send(ctx.event, last)
        return result

    def failed(ctx: inngest.ContextSync) -> Any:
        event, notification = conductor.failed(ctx)
        if notification is not None:
            send(event, notification)
        return None if on_failure is None else on_failure(ctx)

    class Telling(_Telling, inngest.MiddlewareSync):
        def transform_input(self, ctx: Context, function: Any, steps: Any) -> None:
            self.begin(ctx, function, steps)

        def transform_output(self, result: inngest.TransformOutputResult) -> None:
            if (notification := conductor.after_error(self.ctx, result)) is not None:
                send(self.ctx.event, notification)

    return run, failed, Telling


_memos: ContextVar[int] = ContextVar("synap_realtime_memos", default=0)
"""How many finished steps this call of a function was given."""


class _Telling:
    """Middleware: Inngest makes one for each call of a function, and shows it every error."""

    ctx: Context

    def begin(self, ctx: Context, _: inngest.Function[Any], steps: inngest.StepMemos) -> None:
        self.ctx = ctx
        _memos.set(steps.size)
