"""Centrifugo: with history, recovery, idempotent publishes, and a token for each user."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from . import senders
from .load import Client, Publish
from .senders import ID, Call
from .servers import TOOLS, Running, Server, Subscriber, handshake, present
from .tls import write_certificate
from .tokens import Algorithm, Signer

VERSION = "6.9.1"
RETENTION_COUNT = 1000
RETENTION_S = 86_400
"""What both keep of a room: the defaults of ours."""

PING_S = 25
"""As ours."""

PONG_S = 20
"""Longer than the default of 8 s, for machines that are busy."""

CHANNELS = {
    "history_size": RETENTION_COUNT,
    "history_ttl": f"{RETENTION_S}s",
    "force_recovery": True,
    "allow_subscribe_for_client": True,
}
TEAM = "team"
TEAMS = {
    **CHANNELS,
    "name": TEAM,
    "presence": True,
    "join_leave": True,
    "force_push_join_leave": True,
}

CLIENT = "httpx"
"""The HTTP client of its publishers: the one that our SDK uses."""


class Centrifugo(Server):
    """One node.

    Args:
        algorithm: of the users' tokens.
        tls: whether it speaks TLS.
        has_teams: whether it lists the users of the channels of teams, and sends joins and leaves.
    """

    name, title, live = "centrifugo", f"Centrifugo {VERSION}", '"subscribe":{'
    has_replay = True

    def __init__(
        self, algorithm: Algorithm = "HS256", *, tls: bool = False, has_teams: bool = False
    ) -> None:
        self._key = secrets.token_urlsafe(32)
        self._signer = Signer(algorithm)
        self._has_tls = tls
        self._has_teams = has_teams

    def command(self, at: Running) -> Sequence[str | Path]:
        program = present(TOOLS / f"centrifugo@{VERSION}" / "centrifugo", self.title)
        file = at.folder / "config.json"
        file.write_text(json.dumps(self._configuration(at)))
        return [program, "--config", file]

    def environment(self) -> dict[str, str]:
        return {"GOMAXPROCS": "1"}

    def _configuration(self, at: Running) -> dict[str, Any]:
        server: dict[str, Any] = {"address": "127.0.0.1", "port": at.port}
        if self._has_tls:
            certificate, key = map(str, write_certificate(at.folder))
            server["tls"] = {"enabled": True, "cert_pem": certificate, "key_pem": key}
        verifies = {"HS256": "hmac_secret_key", "ES256": "ecdsa_public_key"}
        option = verifies.get(self._signer.algorithm, "rsa_public_key")
        return {
            "http_server": server,
            "http_api": {"key": self._key},
            "client": {
                "token": {option: self._signer.secret or self._signer.public_key},
                "ping_interval": f"{PING_S}s",
                "pong_timeout": f"{PONG_S}s",
            },
            "channel": {
                "without_namespace": CHANNELS,
                "namespaces": [TEAMS] if self._has_teams else [],
            },
        }

    # Its clients

    def client(self, subscriber: Subscriber) -> Client:
        return self.client_of(subscriber.user, [subscriber.room])

    def returning_client(self, subscriber: Subscriber, position: str) -> Client:
        epoch, _, offset = position.partition(" ")
        after = {"recover": True, "epoch": epoch, "offset": int(offset)}
        return self.client_of(subscriber.user, [subscriber.room], after)

    def client_of(
        self, user: str, channels: Sequence[str], position: Mapping[str, object] | None = None
    ) -> Client:
        """Return a client that subscribes to several channels on one connection."""
        connect = {"id": 1, "connect": {"token": self._signer.sign(user)}}
        subscribes = [
            {"id": number, "subscribe": {"channel": channel, **(position or {})}}
            for number, channel in enumerate(channels, 2)
        ]
        hello = ("", json.dumps(connect), "\n".join(map(json.dumps, subscribes)))
        return Client(handshake("/connection/websocket"), hello)

    def positions(self, port: int, rooms: Sequence[str]) -> list[str]:
        commands = [{"publish": {"channel": room, "data": {}}} for room in rooms]
        answer = httpx.post(
            f"http://127.0.0.1:{port}/api/batch",
            json={"commands": commands},
            headers={"X-API-Key": self._key},
            trust_env=False,
            timeout=30,
        )
        found = [reply["publish"] for reply in answer.raise_for_status().json()["replies"]]
        return [f"{each['epoch']} {each['offset']}" for each in found]

    # Its publishers

    @property
    def key(self) -> str:
        return self._key

    def publish(self, room: str, deliveries: int) -> Publish:
        return self.publish_raw(CLIENT, room, deliveries)

    def publish_to_both(self, id: str, deliveries: int) -> Publish:
        channels = [f"user_{senders.place()}", f"request_{senders.place()}"]
        captured = senders.raw(CLIENT, _call("/api/broadcast", _publication(channels=channels)))
        return senders.fill(captured, self._key, [id], deliveries)

    def publish_many(self, rooms: Sequence[str], deliveries: int) -> Publish:
        kind = rooms[0].partition("_")[0]
        channels = [f"{kind}_{senders.place(number)}" for number in range(len(rooms))]
        commands = [{"publish": _publication(channel=channel)} for channel in channels]
        call = _call("/api/batch", {"parallel": True, "commands": commands})
        ids = [room.partition("_")[2] for room in rooms]
        return senders.fill(senders.raw(CLIENT, call), self._key, ids, deliveries)

    def call(self, room: str) -> Call:
        return _call("/api/publish", _publication(channel=room))


def _publication(**to: object) -> dict[str, object]:
    return {**to, "data": senders.notification(), "idempotency_key": ID}


def _call(path: str, body: object) -> Call:
    return Call.of(path, body, X_API_Key=senders.KEY)
