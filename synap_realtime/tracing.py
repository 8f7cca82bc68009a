"""Trace a notification from the job through the publish to the delivery with OpenTelemetry.

The notification carries the context (``traceparent``, W3C Trace Context), so that a span in another
process finds its parent. The application enables tracing by setting up the OpenTelemetry SDK, or by
running under ``opentelemetry-instrument``. Otherwise OpenTelemetry is not even imported.
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
"""The member of a notification that carries the trace context."""

Kind = Literal["internal", "producer", "server", "consumer"]


class Span:
    """A span, which does nothing if tracing is disabled.

    Attributes:
        traceparent: the context for child spans; None if tracing is disabled.
    """

    def __init__(self, span: OtelSpan | None = None) -> None:
        self._span = span
        self.traceparent = None if span is None else _traceparent_of(span)

    def end(self, error: str | None = None) -> None:
        """End the span. A second call does nothing.

        Args:
            error: the cause of a failure. Operators read it, so it must not contain user data.
        """
        if self._span is not None:
            if error is not None:
                from opentelemetry.trace import Status, StatusCode

                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end()
            self._span = None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this span the parent of spans that start inside the block."""
        if self._span is None:
            yield
        else:
            from opentelemetry.trace import use_span

            with use_span(self._span, record_exception=False, set_status_on_exception=False):
                yield


NOOP_SPAN = Span()


CHECK_INTERVAL_S = 1.0
"""The interval at which the process checks whether tracing was set up, until it was. A check costs
as much as the rest of a publish."""

_is_enabled = False
_checked_at = -math.inf


def is_enabled() -> bool:
    """Return whether tracing was set up in this process, as of the last check."""
    global _is_enabled, _checked_at
    if not _is_enabled and (now := perf_counter()) - _checked_at >= CHECK_INTERVAL_S:
        _checked_at = now
        _is_enabled = _detect()
    return _is_enabled


def _detect() -> bool:
    # Setting up tracing imports this module, so without it there is nothing to import or check.
    if (api := sys.modules.get("opentelemetry.trace")) is None:
        return False
    unset = api.ProxyTracerProvider | api.NoOpTracerProvider
    return not isinstance(api.get_tracer_provider(), unset)


def start_span(name: str, kind: Kind, parent: object = None, **attributes: str | int) -> Span:
    """Start a span.

    Args:
        name: a name without ids, which belong into the attributes.
        parent: a ``traceparent``. If it is invalid or None, the parent is the current span.
        attributes: attributes by name, with ``__`` for each dot.
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
    """Return the ``traceparent`` of the current span; None if tracing is disabled."""
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
