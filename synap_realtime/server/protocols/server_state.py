"""The state that the connections of one server share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..app import Node
from ..deadlines import Closable, IdleTimeouts, PendingConnections
from ..resources.pacing import Pacer
from .fanout import SocketFanoutGroup
from .flow_control import UnreadResponses
from .requests import TrustedProxies
from .writes import WriteBatch


class ServerState:
    """What the connections of one server share.

    Attributes:
        node: serves their requests.
        connections: all that are open.
        pending_connections: those that wait for their peer.
        idle_timeouts: of the WebSockets.
        request_bytes: the budget of unanswered requests.
        response_bytes: the budget of responses that clients have not read.
        unread_responses: measures them.
        pacer: divides the event loop's time.
        write_batch: the responses and frames of this event-loop iteration.
        create_group: creates the fan-out group of a room.
        proxies: the operator's.
    """

    def __init__(self, node: Node) -> None:
        settings = node.settings
        self.node = node
        self.connections: set[Closable] = set()
        self.pending_connections = PendingConnections(settings.max_pending_connections)
        self.idle_timeouts = IdleTimeouts(settings.idle_timeout_s, settings.ping_interval_s)
        self.request_bytes = node.budgets.requests
        self.response_bytes = node.budgets.responses
        self.unread_responses = UnreadResponses()
        self.pacer = Pacer()
        self.write_batch = WriteBatch()
        self.create_group: Callable[[], SocketFanoutGroup] = partial(
            SocketFanoutGroup, None, self.write_batch
        )
        self.proxies = TrustedProxies(settings.trusted_proxies)

    def close(self) -> None:
        """Abort the pending connections, and stop all timers."""
        self.pending_connections.close()
        self.unread_responses.close()
        self.idle_timeouts.close()
