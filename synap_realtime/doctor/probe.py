"""Send one GET with a timeout, and read the server's time from the response."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from ..endpoint import ServerUrl
from ..errors import ConfigurationError
from ..lexical import OWS, parse_date, parse_digits
from ..network import BoundedBody, async_client
from .context import CheckContext, ClockOffset
from .timeouts import TIMEOUT_S

MAX_BYTES = 64 * 1024
"""Maximum number of response bytes to read; no health response is larger."""


class ProbeError(Exception):
    """There is no response. The message states the reason."""


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """A status, the headers, and the body if it is JSON."""

    status: int
    headers: Mapping[str, str]
    body: object


async def probe(context: CheckContext, address: ServerUrl, path: str = "") -> ProbeResponse:
    """GET a path below an address. The response's ``Date`` is kept for the clock check.

    Raises:
        ProbeError: there was no response in time, or it was not HTTP.
    """
    scheme = {"ws": "http", "wss": "https"}.get(address.url.scheme, address.url.scheme)
    url = str(address.url.copy_with(scheme=scheme)).rstrip("/") + path
    begun = time.time()
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            async_client(address.url, TIMEOUT_S) as client,
            client.stream("GET", url) as response,
        ):
            came = time.time()
            body = BoundedBody(response, MAX_BYTES)
            if not body.encoding:
                async for chunk in response.aiter_raw():
                    if not body.add(chunk):
                        break
    except (TimeoutError, httpx.TimeoutException):
        raise ProbeError(f"did not respond within {TIMEOUT_S:g} s") from None
    except ConfigurationError as error:
        raise ProbeError(f"cannot be requested ({error})") from None
    except (httpx.HTTPError, OSError, UnicodeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ProbeError(f"did not respond with HTTP ({reason})") from None
    ahead_s = _ahead_s(response.headers, begun, came)
    if ahead_s is not None:
        context.clock_offsets.append(ClockOffset(address.url.host, ahead_s))
    return ProbeResponse(response.status_code, response.headers, _json(body.content))


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _ahead_s(headers: Mapping[str, str], begun: float, came: float) -> float | None:
    """Return the offset minus the response time and the precision of the header."""
    moment = parse_date(headers.get("date", "").strip(OWS))
    if moment is None:
        return None
    theirs = moment.timestamp() + (parse_digits(headers.get("age", "").strip(OWS)) or 0)
    if came < theirs:
        return came - theirs
    return max(0.0, begun - (theirs + 1))
