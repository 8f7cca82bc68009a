"""Explain errors of Redis to an operator."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Sequence

from .connection import RedisConnectionLostError, RedisReplyError, UnsuitableServerError
from .tls import TlsFileError

UNREACHABLE = (RedisConnectionLostError, OSError)  # TimeoutError is an OSError
"""Errors after which the connection is not used again."""

_TEMPORARY = ("READONLY", "LOADING", "MASTERDOWN")
"""Replies of a server that does not serve now. Another server may, or this one later."""

_ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
"""Replies of a node of a cluster that does not serve these keys now. It may serve others.
See https://valkey.io/topics/cluster-spec/ (Redirection and resharding)."""


def is_elsewhere(error: RedisReplyError) -> bool:
    """Return whether the same request may succeed soon, perhaps at another node of the cluster."""
    return error.code in _ELSEWHERE


_MAX_CLIENTS = "max number of clients reached"
_UNKNOWN_COMMAND = re.compile(r"unknown command [`']([^`']+)['`]")

_BY_CODE = {
    "OOM": "Redis is out of memory: raise its maxmemory, or lower --retention-count",
    "READONLY": "this Redis is a replica: name the primary in --store",
    "LOADING": "Redis is loading its data",
    "BUSY": "Redis is busy: a script of another program runs for too long (SCRIPT KILL ends it)",
    "NOREPLICAS": (
        "Redis has fewer replicas than min-replicas-to-write: start them, or check their link"
    ),
    "MOVED": "the cluster has moved these keys to another node",
    "ASK": "the cluster is moving these keys to another node",
    "TRYAGAIN": "the cluster is moving these keys to another node",
    "NOAUTH": "Redis asks for a password: redis://:password@host",
    "WRONGPASS": "Redis rejects the user or the password of --store",
}

_BY_TEXT = {
    _MAX_CLIENTS: "Redis accepts no more connections: raise its maxclients",
    "DB index is out of range": (
        "Redis has no database of this number: use a lower one in --store, or raise its databases"
    ),
    "without any password configured": (
        "Redis has no password: remove the one in --store, or set its requirepass"
    ),
    "SELECT is not allowed in cluster mode": "this Redis is a node of a cluster: write redis+cluster://",
}
"""What replies with the code ``ERR`` contain."""


def is_temporary(error: BaseException) -> bool:
    """Return whether the same request may succeed soon, over another connection."""
    if isinstance(error, RedisReplyError):
        return error.code in _TEMPORARY or _MAX_CLIENTS in str(error)
    return isinstance(error, UNREACHABLE)


def concerns_all_keys(error: RedisReplyError) -> bool:
    """Return whether a call with other keys would be refused, too."""
    return error.code in ("OOM", "MISCONF", "NOREPLICAS") or is_forbidden(error)


def describe_problem(error: BaseException, keys: Sequence[bytes] = ()) -> str:
    """Say what is wrong and how to fix it. It contains no credential.

    Args:
        keys: those of the call that failed.
    """
    match error:
        case UnsuitableServerError():
            return str(error)
        case RedisReplyError():
            return _describe_reply(error, keys)
        case TlsFileError():
            return str(error)
        case ssl.SSLCertVerificationError():
            return (
                f"Redis has a certificate that is not trusted: {error.verify_message}; name the "
                "file of its authority: rediss://host?ca=/path/ca.pem"
            )
        case ssl.SSLError():
            return _describe_tls(error)
        case TimeoutError():
            return "Redis does not answer in time"
        case socket.gaierror():
            return "the host of Redis is unknown: check its name, and the name server"
        case OSError(errno=int(number)):
            return f"Redis cannot be reached: {os.strerror(number)}"
        case OSError():  # of several addresses of a name
            return f"Redis cannot be reached: {error}"
    if "Protocol error" in str(error):
        return "what answers is no Redis without TLS: check host and port, or write rediss://"
    return f"Redis cannot be used: {str(error) or type(error).__name__}"


def _describe_reply(error: RedisReplyError, keys: Sequence[bytes]) -> str:
    text = str(error)
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    if error.code == "WRONGTYPE":
        # All begin with the prefix and the partition: prefix:{number}:state.
        pattern = f" of {keys[0].partition(b'}')[0].decode()}}}:*" if keys else ""
        return (
            f"a key{pattern} is of another type: it belongs to another program; rename it, or "
            "choose another prefix (?prefix=…)"
        )
    if error.code == "CLUSTERDOWN":
        return f"the cluster does not serve these keys: {text.removeprefix('CLUSTERDOWN ')}"
    if error.code == "MISCONF":
        if "RDB" in text or "snapshot" in text:
            return (
                "Redis cannot save its snapshot, and rejects writes: free space on its disk, see "
                "its log, or set stop-writes-on-bgsave-error no"
            )
        return "Redis cannot write to its append only file: free space on its disk, and see its log"
    if is_forbidden(error):
        return f"the user in --store lacks a permission: {text}"
    for part, problem in _BY_TEXT.items():
        if part in text:
            return problem
    if found := _UNKNOWN_COMMAND.search(text):
        return (
            f"Redis has no command {found[1]}: it is renamed or forbidden there, or not supported"
        )
    return f"Redis cannot be used: {text}"


def is_forbidden(error: RedisReplyError) -> bool:
    """Return whether the ACL of the user forbids a command, a key or a channel."""
    # In a script, the code is ERR: "The user executing the script can't run this command" (7.0),
    # and "ACL failure in script" (later).
    text = str(error)
    return error.code == "NOPERM" or "user executing the script" in text or "ACL failure" in text


SENTINEL_RULE = (
    "resetchannels &+switch-master -@all "
    "+sentinel|get-master-addr-by-name +sentinel|master +subscribe"
)
"""The rules of a user of the Sentinels, in their ACL."""


def describe_refusal_of_sentinel(error: RedisReplyError) -> str | None:
    """Say why a Sentinel rejects the login of this node; None: that is not the reason."""
    if error.code == "NOAUTH":
        return (
            "the Sentinels ask for a password: "
            "redis+sentinel://host/name?sentinel_password=…, with &sentinel_username=… for a user"
        )
    if error.code == "WRONGPASS":
        return "the Sentinels reject sentinel_username or sentinel_password of --store"
    if "without any password configured" in str(error):
        return "the Sentinels have no password: remove sentinel_password from --store"
    if is_forbidden(error):
        return (
            f"the user of the Sentinels lacks a permission: {error}; its ACL needs: {SENTINEL_RULE}"
        )
    return None


def _describe_tls(error: ssl.SSLError) -> str:
    reason = (error.reason or "").replace("_", " ")
    if reason in ("WRONG VERSION NUMBER", "RECORD LAYER FAILURE", "PACKET LENGTH TOO LONG"):
        return "Redis does not use TLS at this port: write redis:// (or name its TLS port)"
    if "CERTIFICATE" in reason or isinstance(error, ssl.SSLEOFError):
        return (
            "Redis ends the TLS handshake: if it asks for a certificate of the client "
            "(tls-auth-clients yes), name the files: rediss://host?cert=/path/cert.pem&key=/path/"
            f"key.pem ({reason or error})"
        )
    return f"TLS to Redis fails: {reason or error}"
