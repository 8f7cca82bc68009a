"""Explain errors of Redis to an operator."""

from __future__ import annotations

import os
import ssl

from .connection import RedisConnectionLostError, RedisReplyError

UNREACHABLE = (RedisConnectionLostError, OSError)  # TimeoutError is an OSError
"""Errors after which the connection is not used again."""

_TEMPORARY = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN")
"""Replies of a server that does not serve these keys now. Another server may, or this one later."""


def is_temporary(error: BaseException) -> bool:
    """Return whether the same request may succeed soon, perhaps at another server."""
    if isinstance(error, RedisReplyError):
        return error.code in _TEMPORARY
    return isinstance(error, UNREACHABLE)


def describe_problem(error: BaseException) -> str:
    """Say what is wrong and how to fix it. It contains no credential."""
    match error:
        case RedisReplyError(code="OOM"):
            return "Redis is out of memory: raise its maxmemory, or lower --retention-count"
        case RedisReplyError(code="NOPERM"):
            return f"the user in --store lacks a permission: {error}"
        case RedisReplyError(code="READONLY"):
            return "this Redis is a replica: name the primary in --store"
        case RedisReplyError(code="LOADING"):
            return "Redis is loading its data"
        case RedisReplyError(code="WRONGTYPE"):
            return "a key under the prefix has another type: choose another one (?prefix=…)"
        case RedisReplyError(code="MISCONF"):
            return "Redis cannot write to its disk: free space, and see its log"
        case RedisReplyError(code="NOAUTH"):
            return "Redis asks for a password: redis://:password@host"
        case RedisReplyError(code="WRONGPASS"):
            return "Redis rejects the user or the password of --store"
        case ssl.SSLCertVerificationError():
            return f"Redis has a certificate that is not trusted: {error.verify_message}"
        case TimeoutError():
            return "Redis does not answer in time"
        case OSError(errno=int(number)):
            return f"Redis cannot be reached: {os.strerror(number)}"
    return f"Redis cannot be used: {str(error) or type(error).__name__}"
