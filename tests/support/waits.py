"""The one place where a test shortens (or lengthens) a wait of the package.

Use the fixture ``set_waits``: ``set_waits(head_timeout_s=0.1)``. What is an option of the server is
set as an option instead; code without sockets runs in virtual time (:mod:`tests.support.clocks`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

SetWaits = Callable[..., None]
"""Sets waits, in seconds, until the end of the test."""

WAITS: dict[str, tuple[str, ...]] = {
    # The subscriber
    "open_timeout_s": ("subscriber.connect.OPEN_TIMEOUT_S",),
    "ack_interval_s": ("subscriber.keepalive.ACK_INTERVAL_S",),
    "ping_interval_s": ("subscriber.keepalive.PING_INTERVAL_S",),
    "pong_timeout_s": ("subscriber.keepalive.PONG_TIMEOUT_S",),
    "initial_delay_s": ("subscriber.reconnect.INITIAL_DELAY_S",),
    "max_delay_s": ("subscriber.reconnect.MAX_DELAY_S",),
    # The built-in HTTP server
    "accept_retry_s": ("server.protocols.server.ACCEPT_RETRY_S",),
    "shutdown_grace_s": ("server.protocols.server.SHUTDOWN_GRACE_S",),
    "tls_handshake_timeout_s": ("server.protocols.tls.HANDSHAKE_TIMEOUT_S",),
    "head_timeout_s": ("server.protocols.http1.HEAD_TIMEOUT_S",),
    "body_timeout_s": ("server.protocols.http1.BODY_TIMEOUT_S",),
    "idle_timeout_s": ("server.protocols.http1.IDLE_TIMEOUT_S",),
    "linger_s": ("server.protocols.http1.LINGER_S",),
    "close_handshake_s": ("server.protocols.websocket.CLOSE_HANDSHAKE_S",),
    "pending_check_interval_s": ("server.deadlines.PENDING_CHECK_INTERVAL_S",),
    "reader_timeout_s": ("server.protocols.flow_control.READER_TIMEOUT_S",),
    # Both fronts
    "heartbeat_s": (
        "server.protocols.sse.HEARTBEAT_S",
        "server.asgi.connections.HEARTBEAT_S",
    ),
    "slow_consumer_timeout_s": (
        "server.rooms.backlog.SLOW_CONSUMER_TIMEOUT_S",
        "server.rooms.connection_writer.SLOW_CONSUMER_TIMEOUT_S",
        "server.asgi.connections.SLOW_CONSUMER_TIMEOUT_S",
    ),
    "slow_read_s": ("server.rooms.room_delivery.SLOW_READ_S",),
    "asgi_close_timeout_s": ("server.asgi.connections.CLOSE_TIMEOUT_S",),
    # The rest of the server
    "serve_linger_s": ("server.serve.LINGER_S",),
    "ready_max_age_s": ("server.http.monitoring.MAX_AGE_S",),
    "authorizer_timeout_s": ("server.auth.authorization.AUTHORIZER_TIMEOUT_S",),
    "authorizer_batch_timeout_s": ("server.auth.authorization.AUTHORIZER_BATCH_TIMEOUT_S",),
    "presence_grace_s": ("server.rooms.presence.GRACE_S",),
    "presence_update_interval_s": ("server.rooms.presence.UPDATE_INTERVAL_S",),
    "sqlite_busy_timeout_s": ("server.stores.sqlite.database._BUSY_TIMEOUT_S",),
    "sqlite_maintenance_interval_s": ("server.stores.sqlite.write_queue.MAINTENANCE_INTERVAL_S",),
    "sqlite_rest_s": ("server.stores.sqlite.write_queue._REST_S",),
    "redis_node_lifetime_s": ("server.stores.redis.membership.NODE_LIFETIME_S",),
    "redis_call_timeout_s": ("server.stores.redis.shards.CALL_TIMEOUT_S",),
    "redis_presence_retry_s": (
        "server.stores.redis.presence.RETRY_S",
        "server.stores.redis.user_connections.RETRY_S",
    ),
    "redis_presence_settle_s": ("server.stores.redis.presence.SETTLE_S",),
    # Jobs and the doctor
    "relay_timeout_s": ("jobs.relay.TIMEOUT_S",),
    "doctor_limit_s": ("doctor.runner.LIMIT_S",),
}
"""Each wait's constants, in ``synap_realtime``."""


def wait_setter(monkeypatch: pytest.MonkeyPatch) -> SetWaits:
    """Return what the fixture ``set_waits`` gives."""

    def set_waits(**seconds: float) -> None:
        for name, value in seconds.items():
            for constant in WAITS[name]:
                monkeypatch.setattr(f"synap_realtime.{constant}", value)

    return set_waits
