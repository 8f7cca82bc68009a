"""The steps of PUBLISH that plain publications share with those that have ``fold`` or ``job``.

What two functions have in common is inserted into both.
"""

from __future__ import annotations

from .script import FIND_EPOCH

STATE = """
  local time = string.format('%d', now)
  local partition, current -- that of the last publication, and its epoch
  local room, previous, subscribers, highest, trimmed -- the last room, before its next publication
  local age_ms, lifetime_ms -- if its upkeep is due
  local is_untrimmed -- whether something was added to the log of a room that has folded something
"""
"""What the steps share."""

ENTER = f"""
  local key = KEYS[k + 1]
  if key ~= partition then
    partition, current = key, nil
{FIND_EPOCH.replace("$NOW", "now")}
  end
  local log, meta, id = KEYS[k + 2], KEYS[k + 3], KEYS[k + 4]
  if meta ~= room then
    local found = redis.call('HMGET', meta, 'last', 'head', 'subscribers', 'trimmed')
    previous, subscribers, trimmed = found[1], found[3] or '0', found[4]
    local last, head = previous and previous + 0, found[2]
    highest = last or 0
    if head and head + 0 > highest then highest = head + 0 end
    trimmed = trimmed and trimmed + 0
    age_ms = nil
    if not last or now - last > $UPKEEP or now % $UPKEEP < last % $UPKEEP then
      age_ms, lifetime_ms = string.match(expiry, '^(%d+) (%d+)$')
      previous = previous or string.format('%d', now - lifetime_ms * 1000)
      if trimmed and redis.call('XLEN', log) == 0 then trimmed = previous + 0 end
    end
    room = meta
  end
  local offset, at = now, time
  if highest >= now then
    offset = highest + 1
    at = string.format('%d', offset)
  end
  local row = at .. ' ' .. previous .. ' ' .. subscribers
  local value = row .. ' ' .. call
  if at ~= time then value = value .. ' ' .. time end
"""
"""Read the room, unless it is that of the publication before, and number the publication."""

IF_REMEMBERED = """
    local first, t, by, other = string.match(known, '^((%d+) %S+ %S+) (%S+) ?(%d*)$')
    if other ~= '' then t = other end -- it was stored earlier than its offset says
    if now - t < dedupe_ms * 1000 then
      -- WAIT waits for what this connection has written, and the first call may have used another.
      redis.call('SET', id, known, 'KEEPTTL')
      reply = first .. (by == call and ' 0 ' or ' 1 ') .. current
    end
"""
"""Set the reply if a publication with the id is ``known``."""

FINISH = """
  local announced = current .. ' ' .. previous .. ' ' .. at .. ' ' .. call
  if #content <= $INLINE_BYTES then announced = announced .. ' ' .. content end
  redis.call('SPUBLISH', log, announced)
  redis.call('HSET', meta, 'last', at)
  if age_ms then
    redis.call('PEXPIRE', log, string.format('%d', age_ms + 60000))
    redis.call('PEXPIRE', meta, lifetime_ms)
    if not trimmed then
      redis.call('XTRIM', log, 'MINID', string.format('%d', now - age_ms * 1000))
      age_ms = nil
    end
  end
  if trimmed then is_untrimmed = true end
  highest, previous = offset, at
"""
"""Announce what was added to the log."""

TRIM = """
-- Delete from the log of a room that has folded something what it does not keep.
function trim(log, count)
  local function text(offset) return string.format('%d', offset) end
  local garbage, is_changed = '', false
  is_untrimmed = false
  local function drop(entries)
    for _, entry in ipairs(entries) do
      trimmed, is_changed = tonumber(string.match(entry[1], '^%d+')), true
      if entry[2][6] then garbage = garbage .. entry[2][6] .. '\\n' end
    end
    return #entries
  end
  local expired = 0
  if age_ms then
    expired = drop(redis.call('XRANGE', log, '-', text(now - age_ms * 1000), 'COUNT', 100))
  end
  local extra = redis.call('XLEN', log) - expired - count
  if extra > 0 then
    local from = expired > 0 and '(' .. text(trimmed) .. '-0' or '-'
    drop(redis.call('XRANGE', log, from, '+', 'COUNT', text(math.min(extra, 1000))))
  end
  if is_changed then redis.call('XTRIM', log, 'MINID', text(trimmed + 1)) end
  if garbage ~= '' then
    garbage = (redis.call('HGET', room, 'garbage') or '') .. garbage
    redis.call('HSET', room, 'garbage', garbage)
  end
  redis.call('HSET', room, 'trimmed', text(trimmed))
  age_ms = nil
end
"""
"""Delete from the log of a room that has folded something what it does not keep."""
