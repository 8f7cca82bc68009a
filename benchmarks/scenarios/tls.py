"""The same over TLS, which the servers terminate themselves."""

from __future__ import annotations

from ..centrifugo import Centrifugo
from ..ours import Ours
from ..rounds import Options, Part, Result, Session, measure
from . import connects, fanout, publish

ROOMS = 500
CONNECTIONS = 1500


def run(options: Options) -> list[Result]:
    rooms = options.scaled(ROOMS)

    def prepare(session: Session) -> None:
        session.load.use_tls()
        fanout.connect(session, rooms)
        publish.connect(session, rooms)

    step = options.scaled(CONNECTIONS) // (options.rounds + 1)
    connecting = {
        "tls-connect": "TLS: a connect with an HS256 token, µs",
        "tls-memory": "TLS: memory (PSS) of a connection, KB",
    }
    return measure(
        options,
        options.of(Ours(tls=True), Centrifugo(tls=True)),
        prepare,
        [
            Part(
                {"tls-publish": "TLS: a publish, µs"},
                publish.publishing("tls-publish", rooms, options),
            ),
            Part(
                {"tls-fanout": f"TLS: a delivery, room of {rooms:,}, µs"},
                fanout.delivering("tls-fanout", rooms, options),
            ),
            Part(
                connecting,
                connects.connecting(connecting, step, connects.request_room),
            ),
        ],
    )
