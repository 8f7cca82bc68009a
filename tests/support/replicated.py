"""A primary, a replica, and three Sentinels that watch them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from synap_realtime.server.stores.redis.errors import SENTINEL_RULE

from .certificates import Certified
from .program import free_port
from .timeouts import TIMEOUT_S
from .valkey import (
    REPLICAS_USER,
    VALKEY,
    as_lines,
    running_sentinel,
    running_valkey,
    tls_options,
)

PASSWORD = "of-the-servers-77"
SENTINEL_PASSWORD = "of-the-sentinels-77"
USER_PASSWORD = "of/the+user-77"
SENTINEL_USER_PASSWORD = "of&the+watcher-77"
WRITTEN = "of%2Fthe+user-77", "of%26the+watcher-77"
"""The last two as a URL has them."""


class Replicated:
    """A primary and a replica under three Sentinels."""

    def __init__(
        self,
        folder: Path,
        program: Path = VALKEY,
        *,
        options: Sequence[str] = (),
        rule: str | None = None,
        certified: Certified | None = None,
        through: Callable[[int], int] | None = None,
        down_after_ms: int = 1000,
        clock: str | None = None,
    ) -> None:
        """
        Args:
            options: of the servers.
            rule: the ACL rules of the nodes' user at servers and Sentinels that ask for passwords;
                None: there are neither users nor passwords.
            certified: what servers and Sentinels need for TLS; None: without TLS.
            through: given the port of the primary, returns the one by which others reach it.
            down_after_ms: after how long without an answer the Sentinels replace the primary.
            clock: how far the clock of the replica is off.
        """
        self.stack = contextlib.ExitStack()
        options = [*options, *REPLICAS_USER]
        enter = self.stack.enter_context
        password = sentinel_password = None
        lines = [f"sentinel down-after-milliseconds main {down_after_ms}"]
        if rule is not None:
            password, sentinel_password = PASSWORD, SENTINEL_PASSWORD
            user = ["app", "on", f">{USER_PASSWORD}", *rule.split()]
            options = [*options, "--requirepass", password, "--user", *user]
            lines += [
                f"sentinel auth-pass main {password}",
                f"requirepass {sentinel_password}",
                f"user watcher on >{SENTINEL_USER_PASSWORD} {SENTINEL_RULE}",
            ]
        ports = [free_port() for _ in range(5)]  # with TLS; the plain ones are for the test then
        tls = [tls_options(certified, port) if certified else [] for port in ports]
        self.primary = enter(
            running_valkey(
                folder / "primary", *options, *tls[3], password=password, program=program
            )
        )
        primary_port = ports[3] if certified else self.primary.port
        if through is not None:
            primary_port = through(primary_port)
        self.replica = enter(
            running_valkey(
                folder / "replica",
                *("--replicaof", "127.0.0.1", str(primary_port), *options, *tls[4]),
                password=password,
                program=program,
                clock=clock,
            )
        )
        self.sentinels = [
            enter(
                running_sentinel(
                    *(folder / f"sentinel-{n}", primary_port, program),
                    lines=[*lines, *as_lines(tls[n])],
                    password=sentinel_password,
                )
            )
            for n in range(3)
        ]
        if not certified:
            ports = [each.port for each in self.sentinels]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[:3])
        self.url = f"redis+sentinel://{hosts}/main"
        if rule is not None:
            user_password, sentinel_user_password = WRITTEN
            self.url = (
                f"redis+sentinel://app:{user_password}@{hosts}/main"
                f"?sentinel_username=watcher&sentinel_password={sentinel_user_password}"
            )
        if certified:
            files = f"ca={certified.root}&cert={certified.chain}&key={certified.key}"
            self.url = self.url.replace("redis+", "rediss+") + ("&" if rule else "?") + files
        end = time.monotonic() + TIMEOUT_S
        while not self.is_complete():
            assert time.monotonic() < end, "the Sentinels do not know each other"
            time.sleep(0.05)

    def is_complete(self) -> bool:
        """Whether each Sentinel knows the replica and the other Sentinels."""
        if self.replica.command("INFO", "replication")["master_link_status"] != "up":
            return False
        for each in self.sentinels:
            with each.client(decode_responses=True) as client:
                state = client.sentinel_master("main")
            if (state["num-slaves"], state["num-other-sentinels"]) != (1, 2):
                return False
        return True
