"""Trace publishes and deliveries. See PROTOCOL.md, "Tracing"."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any

from ..protocol.rooms import Room
from ..tracing import NOOP_SPAN, TRACEPARENT, Span, is_enabled, start_span
from .stores.base import Entry

SYSTEM = "synap_realtime"


def start_publish_span(wire: MutableMapping[str, Any], header: str | None) -> Span:
    """Start the span of a publish, as a child of the sender's span.

    The ``traceparent`` of the notification is replaced by that of this span, so that the deliveries
    are its children.

    Args:
        wire: the notification, with its id.
        header: the ``traceparent`` of the request, for a notification without one.
    """
    span = start_span(
        "publish",
        "server",
        wire.get(TRACEPARENT) or header,
        messaging__system=SYSTEM,
        messaging__operation__name="publish",
        messaging__message__id=str(wire["id"]),
    )
    if span.traceparent is not None:
        wire[TRACEPARENT] = span.traceparent
    return span


def start_delivery_span(room: Room, entry: Entry) -> Span:
    """Start the span of the delivery of one notification to one connection."""
    if not is_enabled():
        return NOOP_SPAN
    id, traceparent = _read(entry.text)
    return start_span(
        "deliver",
        "consumer",
        traceparent,
        messaging__system=SYSTEM,
        messaging__operation__name="deliver",
        messaging__destination__name=room,
        messaging__message__id=id,
    )


@lru_cache(256)  # one notification is delivered to many connections
def _read(text: str) -> tuple[str, object]:
    wire = json.loads(text)
    return str(wire["id"]), wire.get(TRACEPARENT)
