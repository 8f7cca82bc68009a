"""Inngest functions that tell their user: started, retrying, completed, failed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import inngest
from pydantic import BaseModel

from ... import handlers
from ...broadcast import BackgroundBroadcaster
from ...errors import ConfigurationError
from ...jobs import JobRun, JobType, job_types
from ...jobs.notifications import STALL_AFTER_S
from .call import ReportingMiddleware, ReportingMiddlewareSync, ReportingOptions, current_call
from .run import InngestRun
from .terminal_events import subscribe_to_terminal_events

DEFAULT_RETRIES = 4
"""Inngest's own, where a function does not say."""

Trigger = inngest.TriggerEvent | inngest.TriggerCron
Handler = Callable[[Any], Any]
FailureHandler = Callable[[Any], Any]


def create_function(
    client: inngest.Inngest,
    *,
    job_type: JobType | str,
    fn_id: str,
    trigger: Trigger | list[Trigger],
    broadcaster: BackgroundBroadcaster | None = None,
    stall_after_s: float = STALL_AFTER_S,
    retries: int | None = None,
    on_failure: FailureHandler | None = None,
    middleware: Sequence[Any] = (),
    **options: Any,
) -> Callable[[Handler], inngest.Function[Any]]:
    """``client.create_function``, for a function whose user hears how it stands.

    The user hears ``{family}.started``; ``{family}.progress`` where the function calls
    :func:`synap_realtime.progress`; ``{family}.retrying`` when an attempt of a step or of the
    function failed and another will come; then exactly one of ``{family}.completed`` with what the
    function returned, ``{family}.failed`` when Inngest has given up, or ``{family}.cancelled``.

    The user is the event's ``data.userId``, the request its ``data.requestId`` (or ``user_id``,
    ``request_id``). An event without a user is logged, and the function runs. With
    ``batch_events``, the user of each event is told; what the function returned reaches them if it
    is a list with one result for each event, else ``completed`` has no data.

    No notification makes the function wait, but that each call of it ends when the server has what
    was told, or is known to be away. None ever fails it.

    ::

        @create_function(client, family="report.creation", fn_id="create-report",
                         trigger=inngest.TriggerEvent(event="report.creation.requested"))
        async def create_report(ctx: inngest.Context) -> dict[str, object]:
            return {"url": await ctx.step.run("render", render)}

    Args:
        client: the Inngest client.
        family: the name before the dot, or a :class:`Family`.
        broadcaster: default: the server of ``REALTIME_URL``.
        stall_after_s: how long it is normal to hear nothing of a run.
        on_failure: the function's own failure handler; it runs after the user was told.
        options: everything else that ``client.create_function`` takes.

    Raises:
        ConfigurationError: the failure handler does not fit the function.
    """
    told = ReportingOptions(
        JobType(job_type) if isinstance(job_type, str) else job_type,
        broadcaster,
        stall_after_s,
        max_attempts=(DEFAULT_RETRIES if retries is None else retries) + 1,
        is_serialized="output_type" in options and client._serializer is not None,
    )

    def decorate(handler: Handler) -> inngest.Function[Any]:
        is_async = inspect.iscoroutinefunction(handler)
        if on_failure is not None and inspect.iscoroutinefunction(on_failure) is not is_async:
            raise ConfigurationError("on_failure: must be async if the function is, and only then")
        run, failed = (_wrap_async if is_async else _wrap_sync)(handler, on_failure, told)
        function = client.create_function(
            fn_id=fn_id,
            trigger=trigger,
            retries=retries,
            on_failure=failed,
            middleware=[*middleware, ReportingMiddleware if is_async else ReportingMiddlewareSync],
            **options,
        )(run)
        subscribe_to_terminal_events(function)
        return function

    return decorate


def create_functions(
    client: inngest.Inngest,
    services: handlers.Services,
    broadcaster: BackgroundBroadcaster | None = None,
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
        retries: how often a failed step is tried again; default: Inngest's (4).
    """
    return [
        _job(client, services, broadcaster, retries, told, handler)
        for told, handler in (
            (job_types.NOTE_CREATION, handlers.handle_note_creation),
            (job_types.TASK_CREATION, handlers.handle_task_creation),
            (job_types.TASK_COMPLETION, handlers.handle_task_completion),
            (job_types.PROJECT_CREATION, handlers.handle_project_creation),
            (job_types.CONVERSATION_MESSAGE, handlers.handle_conversation_message),
        )
    ]


def _job(
    client: inngest.Inngest,
    services: handlers.Services,
    broadcaster: BackgroundBroadcaster | None,
    retries: int | None,
    told: JobType,
    handler: Callable[[JobRun, handlers.Services], Awaitable[BaseModel]],
) -> inngest.Function[Any]:
    @create_function(
        client,
        job_type=told,
        fn_id=told.name.replace(".", "-"),
        trigger=inngest.TriggerEvent(event=told.trigger_event),
        broadcaster=broadcaster,
        retries=retries,
    )
    async def run(ctx: inngest.Context) -> dict[str, Any]:
        payload = await handler(InngestRun(ctx), services)
        return payload.model_dump(mode="json", by_alias=True, exclude_none=True)

    return run


def _wrap_async(
    handler: Handler, on_failure: FailureHandler | None, told: ReportingOptions
) -> tuple[Handler, FailureHandler]:
    @functools.wraps(handler)
    async def run(ctx: inngest.Context) -> Any:
        call = current_call.get()
        with call.running(told):
            result = await handler(ctx)
        # Not through a step: that would make Inngest replay the function once more, and run again
        # what stands after its last step. A repeat has the same id, and is dropped.
        call.end(result)
        return result

    async def ended(ctx: inngest.Context) -> Any:
        if current_call.get().on_terminal_event(told) and on_failure is not None:
            return await on_failure(ctx)
        return None

    return run, ended


def _wrap_sync(
    handler: Handler, on_failure: FailureHandler | None, told: ReportingOptions
) -> tuple[Handler, FailureHandler]:
    @functools.wraps(handler)
    def run(ctx: inngest.ContextSync) -> Any:
        call = current_call.get()
        with call.running(told):
            result = handler(ctx)
        call.end(result)
        return result

    def ended(ctx: inngest.ContextSync) -> Any:
        if current_call.get().on_terminal_event(told) and on_failure is not None:
            return on_failure(ctx)
        return None

    return run, ended
