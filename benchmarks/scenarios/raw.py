"""Publishers without the SDK: ``POST /rooms/{room}/broadcast`` as five HTTP clients send it.

Cold is the first request on a new connection, warm is a later one. Centrifugo gets its own publish
from the same clients.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..centrifugo import Centrifugo
from ..load import Mode, Publish
from ..ours import Ours
from ..peers import Limit
from ..rounds import Options, Part, Result, Session, measure
from ..senders import RAW
from ..servers import Server, own_rooms
from .publish import ROOMS, connect, sending

PUBLISHES = 1500
"""Publishes per round."""

ROUNDS = 3


def run(options: Options) -> list[Result]:
    rooms = options.scaled(ROOMS)
    count = options.scaled(PUBLISHES, 40)

    def prepare(session: Session) -> None:
        connect(session, rooms)

    def part(client: str, temperature: str, mode: Mode) -> Part:
        def requests(kind: Server) -> list[Publish]:
            return [kind.publish_raw(client, one.room, 1) for one in own_rooms(rooms)]

        name = f"raw-{client}-{temperature}"
        what = f"a publish by {client}, without the SDK, {temperature}, µs"
        return Part({name: what}, sending(name, requests, count, mode=mode), rounds=ROUNDS)

    temperatures: Mapping[str, Mode] = {"warm": "closed", "cold": "cold"}
    parts = [part(client, *each) for client in RAW for each in temperatures.items()]
    return measure(options, options.of(Ours(), Centrifugo(), Limit()), prepare, parts)
