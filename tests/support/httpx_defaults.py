"""Defaults of the tests' HTTP clients that name nothing else."""

from __future__ import annotations

import functools
import os
import ssl
from typing import Any

import httpx

from tests.support.timeouts import TIMEOUT_S

_create = httpx.create_ssl_context


@functools.cache
def _trusting(trust_env: bool, *_environment: str | None) -> ssl.SSLContext:
    return _create(trust_env=trust_env)


def _create_ssl_context(
    verify: ssl.SSLContext | str | bool = True,
    cert: Any = None,
    trust_env: bool = True,
) -> ssl.SSLContext:
    if verify is not True or cert is not None:
        return _create(verify, cert, trust_env)
    return _trusting(trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


def set_defaults() -> None:
    """Wait long enough for a busy machine, and read the authorities' certificates only once.

    Of httpx's own 5 s, a busy machine may use up all. Reading the certificates takes 20 ms of each
    new client, although few of them use TLS.
    """
    for phase in ("connect", "read", "write", "pool"):
        setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, TIMEOUT_S)
    vars(httpx._transports.default)["create_ssl_context"] = _create_ssl_context
