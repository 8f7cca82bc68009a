"""The room server of this repository."""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from synap_realtime import mint_token

from . import senders
from .load import Client, Publish
from .servers import Running, Server, Subscriber, handshake
from .tls import write_certificate
from .tokens import Algorithm, Signer

KEYS = 8
"""Publishers with keys of their own: together they may publish more than the limit of one key."""


class Ours(Server):
    """``serve`` with keys, a token for each subscriber, its default limits, validation,
    deduplication and log.

    Args:
        store: of ``--store``.
        algorithm: of the subscribers' tokens.
        tls: whether it speaks TLS.
    """

    name, title, live, has_replay = "ours", "synap-realtime", '"synap.subscribed"', True

    def __init__(
        self, store: str = "memory://", algorithm: Algorithm = "HS256", *, tls: bool = False
    ) -> None:
        self._store = store
        self._keys = [secrets.token_urlsafe(32) for _ in range(KEYS)]
        self._next_key = 0
        self._signer = Signer(algorithm)
        self._has_tls = tls

    def command(self, at: Running) -> Sequence[str | Path]:
        program = Path(sys.executable).with_name("synap-realtime")
        command: list[str | Path] = [
            program,
            "serve",
            "--port",
            str(at.port),
            "--store",
            self._store,
        ]
        if self._has_tls:
            certificate, key = write_certificate(at.folder)
            command += ["--tls-cert", certificate, "--tls-key", key]
        return command

    def environment(self) -> dict[str, str]:
        keys = ",".join(f"bench{number}={key}" for number, key in enumerate(self._keys))
        signed = (
            {"SYNAP_REALTIME_TOKEN_SECRETS": self._signer.secret}
            if self._signer.secret
            else {"SYNAP_REALTIME_JWKS_URLS": self._signer.serve_jwks()}
        )
        return {"SYNAP_REALTIME_API_KEYS": keys, **signed}

    @property
    def key(self) -> str:
        self._next_key = (self._next_key + 1) % KEYS
        return self._keys[self._next_key]

    def token(self, subscriber: Subscriber, scope: str = "subscribe") -> str:
        return self._token(subscriber.user, [subscriber.room], scope)

    def _token(self, user: str, rooms: Sequence[str], scope: str = "subscribe") -> str:
        others = [room for room in rooms if room != f"user_{user}"]
        if self._signer.secret:
            return mint_token(user, rooms=others, scope=scope, secret=self._signer.secret)
        return self._signer.sign(user, scope=scope, rooms=others)

    def client(self, subscriber: Subscriber) -> Client:
        return self.returning_client(subscriber, "latest")

    def returning_client(self, subscriber: Subscriber, position: str) -> Client:
        return self._client(subscriber, f"after={position}")

    def watching_client(self, subscriber: Subscriber) -> Client:
        """Return a client that also watches the presence of its room."""
        return self._client(subscriber, "after=latest&presence=1", "subscribe presence")

    def client_of(self, user: str, rooms: Sequence[str]) -> Client:
        """Return a client that subscribes to several rooms of a user on one connection."""
        actions = [{"action": "subscribe", "room": room, "after": "latest"} for room in rooms]
        request = handshake(
            "/subscribe",
            Authorization=f"Bearer {self._token(user, rooms)}",
            Sec_WebSocket_Protocol="synap.v2",
        )
        return Client(request, ("", *map(json.dumps, actions)))

    def _client(self, subscriber: Subscriber, query: str, scope: str = "subscribe") -> Client:
        return Client(
            handshake(
                f"/rooms/{subscriber.room}/subscribe?{query}",
                Authorization=f"Bearer {self.token(subscriber, scope)}",
                Sec_WebSocket_Protocol="synap.v1",
            )
        )

    def reply(self, room: str, number: int, pieces: int, subscribers: int) -> list[Publish]:
        """Return pieces of one growing text. The last one ends it, and is delivered to each
        subscriber; of the others, the server joins those that follow each other quickly.
        """
        kind, _, id = room.partition("_")
        key = self.key
        requests = [
            senders.fill(captured, key, [id, f"reply-{number}"], 0)
            for captured in senders.sdk_reply(kind, pieces)
        ]
        return [*requests[:-1], dataclasses.replace(requests[-1], deliveries=subscribers)]

    def positions(self, port: int, rooms: Sequence[str]) -> list[str]:
        notifications = [{"type": senders.TYPE, "data": {}, "rooms": [room]} for room in rooms]
        answer = httpx.post(
            f"http://127.0.0.1:{port}/broadcast",
            json={"notifications": notifications},
            headers={"Authorization": f"Bearer {self.key}"},
            trust_env=False,
            timeout=30,
        )
        results = answer.raise_for_status().json()["results"]
        return [
            result["rooms"][room]["cursor"] for room, result in zip(rooms, results, strict=True)
        ]


class WithoutRing(Ours):
    """The room server where io_uring is not allowed."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SYNAP_REALTIME_IO_URING": "0"}
