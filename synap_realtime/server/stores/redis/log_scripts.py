"""The scripts that read the logs of rooms. See ``fold_scripts.py`` for what a log contains."""

from __future__ import annotations

from .fold_scripts import CONSTANTS, FIND_KEY, TEXTS
from .job_scripts import make_get_job
from .script import make_script

READ = make_script(
    """
-- KEYS: state, log, meta, hash of the room's keys. ARGV: epoch and offset of the position, limit,
-- age (us), lifetime of meta (us).
-- Returns: epoch, a sum of 1 if nothing after the position is missing, 2 if the room has folded
--          something, and 4 if more may follow, then offset and text of each entry, for 2 each
--          with a list: size and parts of its folded text; empty if it has none.
local now = clock()

-- Add the entries of a room that has folded something. Return whether all are added.
local function add_folded(reply, found, folds)
  local size = 0
  for n, entry in ipairs(found) do
    local content, field, whole = entry[2][4], entry[2][6], {}
    if field then
      local name, parts, text_size, other_size = string.match(field, '^(%d+) (%-?%d+) (%d+) (%d+) ')
      if parts ~= '-1' then
        local names = {}
        for number = 0, parts do names[#names + 1] = name .. ':' .. text(number) end
        whole = redis.call('HMGET', folds, unpack(names))
        table.insert(whole, 1, text_size)
      end
      size = size + text_size + other_size
    end
    reply[#reply + 1] = string.match(entry[1], '^%d+')
    reply[#reply + 1] = content
    reply[#reply + 1] = whole
    if size >= $MAX_PAGE and n < #found then return false end
  end
  return true
end

local function unit(k, a)
  local current, log = epoch(KEYS[k + 1]), KEYS[k + 2]
  local after = tonumber(ARGV[a + 2])
  local meta = redis.call('HMGET', KEYS[k + 3], 'last', 'head', 'trimmed')
  local last, head, trimmed = tonumber(meta[1]), tonumber(meta[2]) or 0, tonumber(meta[3])
  local foreign = after > 0 and (ARGV[a + 1] ~= current or after > math.max(now, last or 0, head))
  if foreign then after = 0 end
  local oldest = now - ARGV[a + 4]
  local found, previous = {}, last or now - ARGV[a + 5]
  if not last or last > after then
    local from = math.max(after, oldest) + 1
    found = redis.call('XRANGE', log, text(from), '+', 'COUNT', ARGV[a + 3])
  end
  if #found > 0 then
    previous = trimmed or tonumber(found[1][2][2])
    if trimmed and after < oldest then
      local expired = redis.call('XREVRANGE', log, text(oldest), text(after + 1), 'COUNT', 1)[1]
      if expired then previous = tonumber(string.match(expired[1], '^%d+')) end
    end
  end
  local status = not foreign and (after == 0 or previous <= after) and 1 or 0
  local reply = {current, status}
  if trimmed then
    reply[2] = status + 2
    if not add_folded(reply, found, KEYS[k + 4]) then reply[2] = reply[2] + 4 end
    return reply
  end
  for _, entry in ipairs(found) do
    reply[#reply + 1] = string.match(entry[1], '^%d+')
    reply[#reply + 1] = entry[2][4]
  end
  return reply
end
""",
    unit_keys=4,
    unit_arguments=5,
    constants=CONSTANTS,
)
"""Read the log after a position."""

HEAD = make_script(
    """
-- KEYS: state, meta. ARGV: lifetime of meta (us).
-- Returns: epoch, a position that is not before any entry.
local function unit(k, a)
  local current, key = epoch(KEYS[k + 1]), KEYS[k + 2]
  local meta = redis.call('HMGET', key, 'last', 'head')
  local last, head = tonumber(meta[1]), tonumber(meta[2]) or 0
  if last then return {current, text(math.max(last, head))} end
  -- Stored: a later notification must come after it, even if the clock is set back.
  head = text(math.max(clock(), head + 1))
  redis.call('HSET', key, 'head', head)
  redis.call('PEXPIRE', key, text(ARGV[a + 1] / 1000))
  return {current, head}
end
""",
    unit_keys=2,
    unit_arguments=1,
)
"""Return the head of a room."""

GET_JOB = make_script(make_get_job(TEXTS + FIND_KEY))
"""Read the record of a job, with the text of its run."""
