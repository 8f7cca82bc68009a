"""What an operator can turn: arguments, else ``SYNAP_REALTIME_…`` in the environment."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ..errors import ConfigurationError
from ..protocol.control import SILENCE_LIMIT_S
from .stores.base import Retention

# What a browser sends: no path, no user, no upper case.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.\-]+)(?::[0-9]{1,5})?")


class ServerSettings(BaseSettings):
    """The room server's settings; each has its ``SYNAP_REALTIME_`` variable.

    Attributes:
        host, port: where ``serve`` listens. Port 0 takes a free one.
        allowed_origins: browsers' origins beside loopback ones, ``https://app.example.com``.
            In the environment: separated by commas.
        store: ``memory://`` or ``sqlite:///path``; see :func:`stores.open_store`.
        drain_s: at most so long are subscribers let go when the server stops.
        silence_s: a connection from which nothing has come for so long is closed.
        retention_count: notifications that a room keeps.
        retention_s: for how long a room keeps them; ``request_retention_s``: a request's room.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
    """

    model_config = SettingsConfigDict(env_prefix="SYNAP_REALTIME_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8787
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()
    store: str = "memory://"
    drain_s: Annotated[float, Field(ge=0, le=600)] = 5.0
    silence_s: Annotated[float, Field(gt=0)] = SILENCE_LIMIT_S
    retention_count: Annotated[int, Field(ge=1, le=100_000)] = 1000
    retention_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    request_retention_s: Annotated[float, Field(gt=0)] = 3600.0
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"

    @pydantic.field_validator("allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        return value

    @pydantic.field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise PydanticCustomError(
                    "origin", "expected scheme://host[:port], as browsers send it, for each"
                )
        return origins

    def retention(self) -> Retention:
        return Retention(self.retention_count, self.retention_s, self.request_retention_s)


def load_settings(**given: Any) -> ServerSettings:
    """Settings from arguments (None: not given) over the environment.

    Raises:
        ConfigurationError: names the first setting that is wrong.
    """
    try:
        return ServerSettings(**{name: value for name, value in given.items() if value is not None})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise ConfigurationError(
            f"--{name.replace('_', '-')} (SYNAP_REALTIME_{name.upper()}): {first['msg']}, "
            f"got {first['input']!r}"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
