"""The scripts that run inside Redis: each is atomic for one room.

All numbers that identify positions are microseconds since 1970 by the clock of Redis, or greater.
The rules of age are applied by the scripts; the expiry of keys only frees memory.

The keys and the channel of a call are in one partition, so that the scripts run in a Redis Cluster.
For the same reason the channels are those of sharded pub/sub; on one server these are the same.

Every script gets three arguments first: the incarnation of the server that the connection was
opened to, an epoch that no call has used yet, and a shift of the clock in microseconds, which only
tests use. When the incarnation differs from the one that is stored, another server has taken over,
possibly without the latest writes. So the partition gets the new epoch.

Most calls of a busy node are sent together. So a script with units does the same for several of
them: the keys and the arguments of one follow those of another, and each has a reply of its own,
which may be an error. What needs several units in order is one call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha1
from types import MappingProxyType
from typing import NamedTuple


class Script(NamedTuple):
    """A script and the digest by which it is called.

    Attributes:
        unit_keys: how many keys one unit has, unless a call says where its units begin; 0: the
            script has no units.
    """

    source: bytes
    sha: bytes
    unit_keys: int = 0


INLINE_BYTES = 16 * 1024
"""A larger notification is announced without its text and read from the log, so that it cannot fill
the output buffer of a pub/sub connection."""

FIND_EPOCH = """
  local state = redis.call('GET', key)
  if state then
    local at = string.find(state, ' ', 1, true)
    if string.find(state, ARGV[1], at + 1, true) == at + 1 then
      current = string.sub(state, 1, at - 1)
    end
  end
  if not current then
    current = ARGV[2]
    redis.call('SET', key, current .. ' ' .. ARGV[1] .. ' ' .. string.format('%d', $NOW))
  end
"""
"""Set ``current`` to the epoch of the partition whose state is at ``key``. ``$NOW`` is the time."""

COMMON = f"""
local called_at
local function clock()
  if not called_at then
    local time = redis.call('TIME')
    called_at = time[1] * 1000000 + time[2] + ARGV[3]
  end
  return called_at
end
local function text(offset) return string.format('%d', offset) end
local epochs = {{}}
local function epoch(key)
  local current = epochs[key]
  if current then return current end
{FIND_EPOCH.replace("$NOW", "clock()")}
  epochs[key] = current
  return current
end
"""
"""What most scripts begin with."""

_CONSTANT = re.compile(r"\$([A-Z_]+)")

_UNITS = """
local replies = {}
for n = 1, #KEYS / $KEYS do
  local done, reply = pcall(unit, (n - 1) * $KEYS, 3 + (n - 1) * $ARGUMENTS)
  replies[n] = done and reply or {err = reply}
end
return replies
"""


def us(seconds: float) -> int:
    """Return a time in microseconds, as the scripts take it."""
    return round(seconds * 1_000_000)


def make_script(
    source: str,
    unit_keys: int = 0,
    unit_arguments: int = 0,
    *,
    calls_units: bool = False,
    common: str = COMMON,
    constants: Mapping[str, int] = MappingProxyType({}),
) -> Script:
    """Make a script.

    Args:
        source: with units, it defines ``unit(k, a)``. The keys of the unit begin with
            ``KEYS[k + 1]``, its arguments with ``ARGV[a + 1]``.
        unit_keys: see :class:`Script`.
        unit_arguments: how many arguments a unit has.
        calls_units: whether the source itself calls its units, and returns their replies.
        common: what it begins with. Each run of a script makes its functions anew, so a script that
            runs often has fewer.
        constants: what stands for each ``$NAME``.
    """
    if unit_keys and not calls_units:
        source += _UNITS
        constants = {**constants, "KEYS": unit_keys, "ARGUMENTS": unit_arguments}
    values = {"INLINE_BYTES": INLINE_BYTES, **constants}
    whole = _CONSTANT.sub(lambda found: str(values[found[1]]), common + source).encode()
    sha = sha1(whole, usedforsecurity=False).hexdigest().encode()
    return Script(whole, sha, unit_keys)
