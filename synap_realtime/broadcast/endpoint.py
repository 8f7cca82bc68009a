"""One room server as a client is configured: its address, its credential and its known routes."""

from __future__ import annotations

import base64
import codecs
import os

import httpx

from ..endpoint import authorization_header, parse_server_url
from ..errors import InvalidArgumentError


def check_seconds(field: str, value: object) -> float:
    """Validate a duration.

    Raises:
        InvalidArgumentError: the value is not a positive number of seconds.
    """
    if not isinstance(value, int | float) or not 0 < value < 86400:
        raise InvalidArgumentError(field, f"expected seconds, more than 0; got {value!r}")
    return float(value)


class Endpoint:
    """One room server: its address, its key, and its known routes.

    A program may fork while another thread publishes. A module that is being imported at that
    moment stays partially imported in the child. Therefore everything that a request needs is
    imported before a thread needs it, including the codec ``idna`` for host names.
    """

    _codec = codecs.lookup("idna")  # the interpreter caches it

    def __init__(self, url: str | None, api_key: str | None) -> None:
        """Read the arguments, then ``REALTIME_URL`` and ``REALTIME_API_KEY``.

        Raises:
            ConfigurationError: the URL is not an ``http`` or ``https`` URL.
        """
        address = parse_server_url(url)
        self.address = address.url.copy_with(username=None, password=None)
        self.url = self.redacted = address.redacted
        self.named = address.named
        self.url_setting = address.setting or "REALTIME_URL"
        self.key_setting = "api_key=" if api_key else "REALTIME_API_KEY"
        key = api_key or os.environ.get("REALTIME_API_KEY")
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "keep-alive",
            "Content-Type": "application/json",
            "User-Agent": f"python-httpx/{httpx.__version__}",
        }
        if key:
            source = "api_key" if api_key else "REALTIME_API_KEY"
            headers["Authorization"] = authorization_header(source, key)
        elif address.url.userinfo:
            user, password = address.url.username, address.url.password
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {basic}"
        self.headers = httpx.Headers(headers)
        self.has_batch_route = True
