"""The permissions that the user of a store needs in the ACL of Redis.

See https://valkey.io/topics/acl/.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .address import RedisAddress
from .connection import UnsuitableServerError
from .durability import Durability
from .scripts import ALL

_IN_SCRIPTS = re.compile(rb"redis\.p?call\('([A-Z]+)'")

_WITHOUT_KEY = frozenset({"INFO", "TIME"})

_RUN_FIRST = frozenset({"CONFIG|GET", "EVALSHA", "INFO", "ROLE", "SCRIPT|LOAD", "SELECT"})
"""What a connection runs before the check of permissions, so that Redis has named it already."""


class Permission(NamedTuple):
    """A command that the user must be allowed to run.

    Attributes:
        command: its name, as in an ACL rule: ``SET``, ``CONFIG|GET``.
        on: what its first argument is; empty: neither a key nor a channel.
    """

    command: str
    on: Literal["", "key", "channel"] = ""

    @property
    def rule(self) -> str:
        return f"+{self.command.lower()}"


def needed_permissions(address: RedisAddress) -> list[Permission]:
    """Return what the store of an address runs, over its connections and in its scripts."""
    found = {name.decode() for script in ALL for name in _IN_SCRIPTS.findall(script.source)}
    needed = {Permission(name, "" if name in _WITHOUT_KEY else "key") for name in found}
    needed.discard(Permission("SPUBLISH", "key"))
    needed |= {
        Permission("EVALSHA"),
        Permission("SCRIPT|LOAD"),
        Permission("INFO"),
        Permission("SPUBLISH", "channel"),
        Permission("SSUBSCRIBE", "channel"),
        Permission("SUNSUBSCRIBE"),
    }
    if address.is_cluster:
        needed |= {Permission("ASKING"), Permission("CLUSTER|INFO"), Permission("CLUSTER|SLOTS")}
    if address.database:
        needed.add(Permission("SELECT"))
    if address.service is not None:
        needed.add(Permission("ROLE"))
    if address.durability is Durability.REPLICA:
        needed.add(Permission("WAIT"))
    if address.durability is Durability.DISK:
        needed.add(Permission("CONFIG|GET"))
    return sorted(needed)


def acl_rule(address: RedisAddress) -> str:
    """Return the rules of a user with these permissions, and no others."""
    rules = " ".join(each.rule for each in needed_permissions(address))
    return f"~{address.prefix}:* &{address.prefix}:* -@all {rules}"


def access_arguments(address: RedisAddress) -> list[str]:
    """Return the arguments of :data:`~.scripts.ACCESS`: what the check has not run yet.

    Each command is complete. Redis reads an argument that says how many keys follow, as that of
    EVALSHA, without looking whether it is there, and crashes.
    """
    key = f"{address.prefix}:{{0}}:x"
    arguments = {"": "", "key": " ".join([key] * 4), "channel": key}
    return [
        f"{each.command.replace('|', ' ')} {arguments[each.on]}"
        for each in _to_ask(needed_permissions(address))
    ]


def _to_ask(needed: Sequence[Permission]) -> list[Permission]:
    return [each for each in needed if each.command not in _RUN_FIRST]


def check_access(address: RedisAddress, refused: Sequence[int]) -> None:
    """Check the reply of :data:`~.scripts.ACCESS`.

    Raises:
        UnsuitableServerError: the user lacks permissions. The message says how to grant them.
    """
    needed = _to_ask(needed_permissions(address))
    missing = {needed[abs(number) - 1] for number in refused}
    if unknown := [needed[-number - 1].command for number in refused if number < 0]:
        raise UnsuitableServerError(
            f"Redis does not know {', '.join(unknown)}, which may be renamed there "
            "(rename-command); use a server that has all commands"
        )
    patterns: list[str] = []
    for on, pattern in (("key", "the keys ~"), ("channel", "the channels &")):
        if (of_kind := {each for each in needed if each.on == on}) <= missing:
            patterns.append(f"{pattern}{address.prefix}:*")
            missing -= of_kind
    if lacks := [*(each.command for each in sorted(missing)), *patterns]:
        raise forbidden(address, ", ".join(lacks))


def forbidden(address: RedisAddress, what: str) -> UnsuitableServerError:
    """Return the error that the user may not use something, with the rules to grant."""
    return UnsuitableServerError(
        f"the user in --store may not use {what}; its ACL needs: {acl_rule(address)}"
    )
