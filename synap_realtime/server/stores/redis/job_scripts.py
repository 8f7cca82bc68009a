"""What the scripts do with the records of jobs. See :class:`~..base.JobStore`.

A node folds an event into the record that it knows, and PUBLISH stores the result if the record has
not been changed since: otherwise it stores nothing of the publication, and returns the record. The
records of a room are in three keys:

- ``jobs`` (hash): of each record, by the id of its job: ``h``, the name of the publication that has
  changed it last, when it expires, its size, 1 if it has ended, its status and its type; ``m``, its
  member of the index; ``u``, its run; ``r``, the record; ``t``, the text of a run that has ended.
  By the id of a run that has ended: ``e``, when the record expires, and its job. And ``bytes``, the
  size of all records.
- ``index`` (sorted set): when each job began, and its id.
- ``times`` (sorted set): the id of each job, by the offset of its last change.
"""

from __future__ import annotations

from ....protocol.folding import MAX_ATTEMPT
from ..base import MAX_JOBS_BYTES
from ..folds import MAX_PAGE_BYTES
from .script import make_script

CONSTANTS = {"MAX_ATTEMPT": MAX_ATTEMPT, "MAX_JOBS_BYTES": MAX_JOBS_BYTES}

CHECK_RECORD = """
-- Return the version of a record, and its content; a dash: there is none.
local function version_of(jobs, id)
  local found = redis.call('HMGET', jobs, 'h' .. id, 'r' .. id)
  local version, expires = string.match(found[1] or '', '^(%S+) (%d+) ')
  if version and tonumber(expires) > now then return version, found[2] end
  return '-', ''
end

-- Return whether a run has ended, and its record is kept.
local function has_ended(jobs, run)
  local marker = redis.call('HGET', jobs, 'e' .. run)
  return marker and tonumber(string.match(marker, '^%d+')) > now
end
"""

CHANGE_RECORD = """
local function forget_run(jobs, run, id)
  local marker = redis.call('HGET', jobs, 'e' .. run)
  if marker and string.match(marker, '^%d+ (.*)$') == id then
    redis.call('HDEL', jobs, 'e' .. run)
  end
end

local function delete_record(jobs, index, times, id)
  local found = redis.call('HMGET', jobs, 'h' .. id, 'm' .. id, 'u' .. id)
  redis.call('ZREM', times, id)
  if not found[1] then return end
  forget_run(jobs, found[3], id)
  redis.call('ZREM', index, found[2])
  redis.call('HINCRBY', jobs, 'bytes', '-' .. string.match(found[1], '^%S+ %d+ (%d+) '))
  redis.call('HDEL', jobs, 'h' .. id, 'm' .. id, 'u' .. id, 'r' .. id, 't' .. id)
end

-- Delete the record that was changed longest ago; those that have ended come first.
local function delete_oldest(jobs, index, times, written)
  local ids = redis.call('ZRANGE', times, 0, -1)
  local oldest
  for _, id in ipairs(ids) do
    if id ~= written then
      local header = redis.call('HGET', jobs, 'h' .. id)
      oldest = oldest or id
      if not header or string.match(header, '^%S+ %d+ %d+ 1 ') then
        oldest = id
        break
      end
    end
  end
  delete_record(jobs, index, times, oldest)
end

-- Close the keys of a run for good. Return its text; nil if the log has none.
local function end_keys(folds, run, age_limit_ms)
  local content
  for _, kind in ipairs({'text', 'progress'}) do
    local name = run .. ':' .. kind
    local key = find_key(folds, name, age_limit_ms)
    if key then
      if kind == 'text' and key.mode == 'append' then
        local parts = {}
        for number = 0, key.parts do
          local _, value = part(folds, key.text, number)
          parts[#parts + 1] = value
        end
        content = table.concat(parts)
      end
      key.is_closed, key.attempt = true, $MAX_ATTEMPT
      local names = redis.call('HGET', folds, 'open') or '\\n'
      redis.call('HSET', folds, 'k' .. name, row_of(key), 'open', without(names, name))
    end
  end
  return content
end

local function change_record(k, a, offset, call, age_limit_ms)
  local folds, jobs, index, times = KEYS[k + 5], KEYS[k + 6], KEYS[k + 7], KEYS[k + 8]
  local id, event_run, run, record = ARGV[a + 12], ARGV[a + 13], ARGV[a + 14], ARGV[a + 17]
  local is_changed, is_ending, ended, status, most, age =
    string.match(ARGV[a + 11], '^%S+ (%d) (%d) (%d) (%a+) (%d+) (%d+)$')
  local content = is_ending == '1' and end_keys(folds, event_run, age_limit_ms)
  if is_changed == '0' then return end
  if ended == '0' then content = nil end
  local found = redis.call('HMGET', jobs, 'h' .. id, 'm' .. id, 'u' .. id)
  local member = ARGV[a + 15] .. '\\0' .. id
  local size = #record + (content and #content or 0)
  local old_size = found[1] and string.match(found[1], '^%S+ %d+ (%d+) ') + 0 or 0
  if found[1] then
    if found[2] ~= member then redis.call('ZREM', index, found[2]) end
    if found[3] ~= run then forget_run(jobs, found[3], id) end
    redis.call('HDEL', jobs, 't' .. id)
  end
  local expires = text(now + age)
  local header = call .. ' ' .. expires .. ' ' .. text(size) .. ' ' .. ended .. ' ' .. status
  redis.call('HSET', jobs, 'h' .. id, header .. ' ' .. ARGV[a + 16], 'm' .. id, member,
    'u' .. id, run, 'r' .. id, record)
  if content then redis.call('HSET', jobs, 't' .. id, content) end
  if ended == '1' then redis.call('HSET', jobs, 'e' .. run, expires .. ' ' .. id) end
  redis.call('HINCRBY', jobs, 'bytes', text(size - old_size))
  redis.call('ZADD', index, 0, member)
  redis.call('ZADD', times, text(offset), id)
  local old = redis.call('ZRANGEBYSCORE', times, '-inf', text(now - age), 'LIMIT', 0, 10)
  for _, each in ipairs(old) do
    if each ~= id then delete_record(jobs, index, times, each) end
  end
  if old_size == 0 or math.floor(size / 1024) > math.floor(old_size / 1024) then
    local count = redis.call('ZCARD', times)
    while count > 1 and (count > tonumber(most)
        or tonumber(redis.call('HGET', jobs, 'bytes')) > $MAX_JOBS_BYTES) do
      delete_oldest(jobs, index, times, id)
      count = count - 1
    end
  end
  for _, name in ipairs({jobs, index, times}) do
    redis.call('PEXPIRE', name, text(age / 1000 + 60000))
  end
end
"""

_POSITION = """
-- Return a position that is not before any entry; a later notification comes after it.
local function position_of(meta, lifetime)
  local found = redis.call('HMGET', meta, 'last', 'head', 'trimmed')
  local last, head = tonumber(found[1]), tonumber(found[2]) or 0
  if last then return text(math.max(last, head)), tonumber(found[3]) end
  head = text(math.max(clock(), head + 1))
  redis.call('HSET', meta, 'head', head)
  redis.call('PEXPIRE', meta, text(lifetime / 1000))
  return head
end
"""


def make_get_job(find_key: str) -> str:
    """Return the source of GET_JOB.

    Args:
        find_key: the source of the functions that read keys.
    """
    return (
        _POSITION
        + """
-- KEYS: state, meta, hash of the room's keys, jobs. ARGV[4..]: lifetime of meta (us), age (ms), id
-- of the job.
-- Returns: epoch, a position that is not before any entry, the record, and parts of its text.
local now = clock()
local position, trimmed = position_of(KEYS[2], ARGV[4])
"""
        + find_key
        + """
local folds, jobs, id = KEYS[3], KEYS[4], ARGV[6]
local found = redis.call('HMGET', jobs, 'h' .. id, 'r' .. id, 't' .. id, 'u' .. id)
local expires, ended = string.match(found[1] or '', '^%S+ (%d+) %d+ (%d) ')
local reply = {epoch(KEYS[1]), position}
if not expires or tonumber(expires) <= now then return reply end
reply[3] = found[2]
if ended == '1' then
  if found[3] then reply[4] = found[3] end
  return reply
end
local key = find_key(folds, found[4] .. ':text', ARGV[5])
if key and key.mode == 'append' then
  for number = 0, key.parts do
    local _, value = part(folds, key.text, number)
    reply[#reply + 1] = value
  end
end
return reply
"""
    )


LIST_JOBS = make_script(
    _POSITION
    + """
-- KEYS: state, meta, jobs, index. ARGV[4..]: lifetime of meta (us), limit, member of the index
-- after which the list begins ('' for the first), type ('' for all), statuses, each between spaces
-- ('' for all).
-- Returns: epoch, a position that is not before any entry, 1 if more follow, then the records.
local now = clock()
local jobs, index, limit = KEYS[3], KEYS[4], tonumber(ARGV[5])
local last = ARGV[6] == '' and '+' or '(' .. ARGV[6]
local reply = {epoch(KEYS[1]), (position_of(KEYS[2], ARGV[4])), '0'}
local size = 0
while true do
  local members = redis.call('ZREVRANGEBYLEX', index, last, '-', 'LIMIT', 0, 100)
  for _, member in ipairs(members) do
    local id = string.match(member, '^%Z*%z(.*)$')
    local header = redis.call('HGET', jobs, 'h' .. id)
    local expires, status, type = string.match(header or '', '^%S+ (%d+) %d+ %d (%a+) (.*)$')
    if expires and tonumber(expires) > now
        and (ARGV[7] == '' or ARGV[7] == type)
        and (ARGV[8] == '' or string.find(ARGV[8], ' ' .. status .. ' ', 1, true)) then
      if #reply - 3 >= limit or size >= $MAX_PAGE then
        reply[3] = '1'
        return reply
      end
      local record = redis.call('HGET', jobs, 'r' .. id)
      size = size + #record
      reply[#reply + 1] = record
    end
    last = '(' .. member
  end
  if #members < 100 then return reply end
end
""",
    constants={"MAX_PAGE": MAX_PAGE_BYTES},
)
"""Read records of a room, newest first."""
