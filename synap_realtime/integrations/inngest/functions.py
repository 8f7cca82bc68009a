"""Create Inngest functions whose lifecycle is published."""

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
from ...jobs.functions import check_job_function
from ...jobs.notifications import STALL_AFTER_S
from .call import ReportingMiddleware, ReportingMiddlewareSync, ReportingOptions, current_call
from .run import InngestRun
from .terminal_events import subscribe_to_terminal_events

DEFAULT_RETRIES = 4
"""Inngest's default."""

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
    """Create a function with ``client.create_function`` and publish its lifecycle.

    The recipient receives ``{job_type}.started``; ``{job_type}.progress`` when the function calls
    :func:`synap_realtime.progress`; ``{job_type}.retrying`` when an attempt of a step or of the
    function failed and another follows; then exactly one of ``{job_type}.completed`` with the
    function's result, ``{job_type}.failed`` when no attempt is left, or ``{job_type}.cancelled``.

    The recipient is the event's ``data.userId`` and ``data.requestId`` (or ``user_id``,
    ``request_id``). An event without a user is logged, and the function runs. With
    ``batch_events``, the user of each event is notified. If the result is a list with one item for
    each event, each user receives the item of their event; otherwise ``completed`` has no data.

    Notifications do not delay the function, except that each call ends only when the server has
    them, or is known to be unavailable. A notification never fails the function.

    ::

        @create_function(client, job_type="report.creation", fn_id="create-report",
                         trigger=inngest.TriggerEvent(event="report.creation.requested"))
        async def create_report(ctx: inngest.Context) -> dict[str, object]:
            return {"url": await ctx.step.run("render", render)}

    Args:
        client: the Inngest client.
        job_type: the name before the dot, or a :class:`JobType`.
        broadcaster: default: the server of ``REALTIME_URL``.
        stall_after_s: how long a run may be silent before it counts as stalled.
        on_failure: the function's own failure handler; it runs after the recipient was notified.
        options: all other options of ``client.create_function``.

    Raises:
        ConfigurationError: the failure handler does not match the function.
        InvalidArgumentError: the function or ``on_failure`` is a generator function.
    """
    reporting = ReportingOptions(
        JobType(job_type) if isinstance(job_type, str) else job_type,
        broadcaster,
        stall_after_s,
        max_attempts=(DEFAULT_RETRIES if retries is None else retries) + 1,
        is_serialized="output_type" in options and client._serializer is not None,
    )

    def decorate(handler: Handler) -> inngest.Function[Any]:
        check_job_function("handler", handler)
        check_job_function("on_failure", on_failure)
        is_async = inspect.iscoroutinefunction(handler)
        if on_failure is not None and inspect.iscoroutinefunction(on_failure) is not is_async:
            raise ConfigurationError("on_failure: must be async if the function is, and only then")
        run, failed = (_wrap_async if is_async else _wrap_sync)(handler, on_failure, reporting)
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
    """Return the handlers of :mod:`synap_realtime.handlers` as functions for Inngest's ``serve``.

    Each is triggered by the event of its job type (``note.creation.requested``, …,
    ``conversation.message.sent``).

    Args:
        client: the Inngest client.
        services: the handlers' dependencies, provided by the application.
        broadcaster: default: the server of ``REALTIME_URL``.
        retries: maximum number of retries of a failed step. Default: Inngest's (4).
    """
    return [
        _job(client, services, broadcaster, retries, job_type, handler)
        for job_type, handler in (
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
    job_type: JobType,
    handler: Callable[[JobRun, handlers.Services], Awaitable[BaseModel]],
) -> inngest.Function[Any]:
    @create_function(
        client,
        job_type=job_type,
        fn_id=job_type.name.replace(".", "-"),
        trigger=inngest.TriggerEvent(event=job_type.trigger_event),
        broadcaster=broadcaster,
        retries=retries,
    )
    async def run(ctx: inngest.Context) -> dict[str, Any]:
        payload = await handler(InngestRun(ctx), services)
        return payload.model_dump(mode="json", by_alias=True, exclude_none=True)

    return run


def _wrap_async(
    handler: Handler, on_failure: FailureHandler | None, reporting: ReportingOptions
) -> tuple[Handler, FailureHandler]:
    @functools.wraps(handler)
    async def run(ctx: inngest.Context) -> Any:
        call = current_call.get()
        with call.running(reporting):
            result = await handler(ctx)
        # Not in a step: Inngest would replay the function once more, and repeat the code after its
        # last step. A repeated notification has the same id and is dropped.
        call.end(result)
        return result

    async def on_terminal(ctx: inngest.Context) -> Any:
        if current_call.get().on_terminal_event(reporting) and on_failure is not None:
            return await on_failure(ctx)
        return None

    return run, on_terminal


def _wrap_sync(
    handler: Handler, on_failure: FailureHandler | None, reporting: ReportingOptions
) -> tuple[Handler, FailureHandler]:
    @functools.wraps(handler)
    def run(ctx: inngest.ContextSync) -> Any:
        call = current_call.get()
        with call.running(reporting):
            result = handler(ctx)
        call.end(result)
        return result

    def on_terminal(ctx: inngest.ContextSync) -> Any:
        if current_call.get().on_terminal_event(reporting) and on_failure is not None:
            return on_failure(ctx)
        return None

    return run, on_terminal
