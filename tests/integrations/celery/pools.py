"""The options of Celery's worker for each of its pools."""

from __future__ import annotations

POOLS = {
    "prefork": ("--pool", "prefork", "-c", "2"),
    "threads": ("--pool", "threads", "-c", "3"),
    "gevent": ("--pool", "gevent", "-c", "10"),
    "eventlet": ("--pool", "eventlet", "-c", "10"),
    "solo": ("--pool", "solo"),
}
