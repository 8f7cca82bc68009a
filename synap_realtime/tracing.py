"""Spans from the job through the publish to the delivery, where the process is traced.

The notification carries the context (``traceparent``, W3C Trace Context), so a span in another
process finds its parent. Whether anything is traced is the application's choice: it sets up the
OpenTelemetry SDK (or runs under ``opentelemetry-instrument``). Where it does not, nothing is loaded
and nothing is done.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan

TRACEPARENT = "traceparent"
"""The member of a notification."""

Kind = Literal["internal", "producer", "server", "consumer"]


class Span:
    """One thing that takes time; without tracing it is nothing.

    Attributes:
        traceparent: the context for what comes of it; None where nothing is traced.
    """

    def __init__(self, span: OtelSpan | None = None) -> None:
        self._span = span
        self.traceparent = None if span is None else _traceparent_of(span)

    def end(self, error: str | None = None) -> None:
        """It is over; a second call changes nothing.

        Args:
            error: what went wrong, without anything that is not for an operator's eyes.
        """
        if self._span is not None:
            if error is not None:
                from opentelemetry.trace import Status, StatusCode

                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end()
            self._span = None

    @contextmanager
    def current(self) -> Iterator[None]:
        """What begins inside is part of it. Does not end it."""
        if self._span is None:
            yield
        else:
            from opentelemetry.trace import use_span

            with use_span(self._span, record_exception=False, set_status_on_exception=False):
                yield


NOOP_SPAN = Span()


CHECK_INTERVAL_S = 1.0
"""How often it is looked whether somebody has set up tracing, until somebody has: to ask costs as
much as all the rest of a publish."""

_is_enabled = False
_looked_at = -math.inf


def is_enabled() -> bool:
    """Whether somebody has set up tracing in this process, at the last look."""
    global _is_enabled, _looked_at
    if not _is_enabled and (now := perf_counter()) - _looked_at >= CHECK_INTERVAL_S:
        _looked_at = now
        _is_enabled = _detect()
    return _is_enabled


def _detect() -> bool:
    # Who has set it up has loaded it, so whoever has not pays nothing, not even the import.
    if (api := sys.modules.get("opentelemetry.trace")) is None:
        return False
    nobody = api.ProxyTracerProvider | api.NoOpTracerProvider
    return not isinstance(api.get_tracer_provider(), nobody)


def start_span(name: str, kind: Kind, parent: object = None, **attributes: str | int) -> Span:
    """Begin a span.

    Args:
        name: of few kinds; ids belong into the attributes.
        parent: a ``traceparent``; what is none is passed over, and without one it is part of what
            goes on here.
        attributes: with ``__`` for each dot.
    """
    if not is_enabled():
        return NOOP_SPAN
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None
    if isinstance(parent, str):
        context = TraceContextTextMapPropagator().extract({TRACEPARENT: parent})
        if not trace.get_current_span(context).get_span_context().is_valid:
            context = None
    span = trace.get_tracer("synap_realtime").start_span(
        name,
        context,
        trace.SpanKind[kind.upper()],
        {key.replace("__", "."): value for key, value in attributes.items()},
    )
    return Span(span)


def current_traceparent() -> str | None:
    """Of the span that goes on here."""
    if not is_enabled():
        return None
    from opentelemetry import trace

    return _traceparent_of(trace.get_current_span())


def _traceparent_of(span: OtelSpan) -> str | None:
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, Any] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get(TRACEPARENT)
