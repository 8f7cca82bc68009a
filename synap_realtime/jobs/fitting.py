"""Making any result fit into a notification, without cutting silently."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ..errors import InvalidArgumentError
from ..protocol.notification import MAX_NOTIFICATION_BYTES, encode_json, to_json_object

logger = logging.getLogger(__name__)

MAX_DATA_BYTES = MAX_NOTIFICATION_BYTES - 4096
"""What is left for ``data`` beside a notification's other members."""

_MAX_NAMES = 50  # of members that did not fit


def fit(result: object) -> dict[str, Any]:
    """What a job returned as the ``data`` of a notification.

    A mapping or a pydantic model is it; anything else becomes ``{"result": …}``, None is ``{}``.
    What has no JSON form, or is over the limit with the rest, is left out: then ``truncated`` is
    true and ``omitted`` names the members.
    """
    if not isinstance(result, Mapping | BaseModel):
        result = {} if result is None else {"result": result}
    try:
        data = to_json_object("result", result)
        if len(encode_json("result", data)) <= MAX_DATA_BYTES:
            return data
    except InvalidArgumentError as error:
        logger.warning("a result is told in part: %s", error)
    else:
        logger.warning("a result is told in part: it has more than %d bytes", MAX_DATA_BYTES)
    return _what_fits(dict(_members(result)))


def _members(result: Mapping[Any, Any] | BaseModel) -> Iterator[tuple[str, object]]:
    if isinstance(result, BaseModel):
        for name, info in type(result).model_fields.items():
            yield info.serialization_alias or info.alias or name, getattr(result, name)
    else:
        for key, value in result.items():
            yield str(key), value


def _what_fits(members: Mapping[str, object]) -> dict[str, Any]:
    sized: dict[str, tuple[int, object]] = {}
    for name, value in members.items():
        try:
            one = to_json_object("result", {name: value})
            sized[name] = (len(encode_json("result", one)), one[name])
        except InvalidArgumentError:
            continue
    left = MAX_DATA_BYTES - 1024 - 134 * _MAX_NAMES
    kept = set()
    for name, (size, _) in sorted(sized.items(), key=lambda item: item[1][0]):
        left -= size
        if left >= 0:
            kept.add(name)
    data = {name: value for name, (_, value) in sized.items() if name in kept}
    omitted = [_printable(name) for name in members if name not in kept]
    return {**data, "truncated": True, "omitted": omitted[:_MAX_NAMES]}


def _printable(name: str) -> str:
    return name[:32].encode(errors="replace").decode()
