"""The scripts that write and read the logs of rooms.

A room's log is a stream. What is folded (see ``stores/folds.py``) is in it once, as the last write
of its key, with the field ``f``: the key's text, how many parts that has less one (-1: none), its
size inside a JSON string, that of the rest of the notification, and the key's name. Everything else
about the keys of a room is in one hash:

- ``k`` and the name of a key: the row of its last write, while the log has its entry;
- ``open``: the names of open keys, each after a line feed; some may be gone from the log;
- the number of a text, a colon and a number from 0: a part of the text, after the number of code
  points before it. The number of a text is the offset of its first piece. A text is never
  rewritten: the last part grows to :data:`PART_BYTES`, then another one begins.

The hash ``meta`` of a room that has folded something has two fields in addition: ``trimmed``, the
highest offset that retention has deleted, and ``garbage``, the fields ``f`` of what it has deleted.
In such a room the scripts delete entries themselves, because an entry that is missing before
another one may have been folded into a later one.
"""

from __future__ import annotations

from ..folds import IDLE_KEY_S, MAX_FOLDED_BYTES, MAX_OPEN_KEYS, MAX_PAGE_BYTES
from .job_scripts import CHANGE_RECORD, CHECK_RECORD, make_get_job
from .job_scripts import CONSTANTS as JOB_CONSTANTS
from .script import make_script, us

PART_BYTES = 1024
"""About how large a part of a text is. Each piece rewrites the last one."""

UPKEEP_S = 30.0
"""The first publication of a room in each such time renews the expiry of its keys."""

_CONSTANTS = {
    "PART": PART_BYTES,
    "UPKEEP": us(UPKEEP_S),
    "IDLE": us(IDLE_KEY_S),
    "MAX_OPEN": MAX_OPEN_KEYS,
    "MAX_FOLDED": MAX_FOLDED_BYTES,
    "MAX_PAGE": MAX_PAGE_BYTES,
    **JOB_CONSTANTS,
}

_STATE = """
local now = clock()
local time = text(now)
local room, previous, subscribers, highest, trimmed -- the last room, before its next publication
local age_ms, lifetime_ms -- if its upkeep is due
local is_untrimmed -- whether something was added to the log of a room that has folded something
"""

# What two functions have in common is inserted into both, and those that are needed seldom are made
# where they are: each run of a script makes its functions anew.

_ENTER = """
  local current = epoch(KEYS[k + 1])
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
      previous = previous or text(now - lifetime_ms * 1000)
      if trimmed and redis.call('XLEN', log) == 0 then trimmed = previous + 0 end
    end
    room = meta
  end
  local offset, at = now, time
  if highest >= now then
    offset = highest + 1
    at = text(offset)
  end
  local row = at .. ' ' .. previous .. ' ' .. subscribers
  local value = row .. ' ' .. call .. ' ' .. time
"""

_IF_REMEMBERED = """
    local first, by, t = string.match(known, '^(%S+ %S+ %S+) (%S+) (%S+)$')
    if now - t < dedupe_ms * 1000 then
      -- WAIT waits for what this connection has written, and the first call may have used another.
      redis.call('SET', id, known, 'KEEPTTL')
      return first .. (by == call and ' 0 ' or ' 1 ') .. current
    end
"""

_FINISH = """
  local announced = current .. ' ' .. previous .. ' ' .. at .. ' ' .. call
  if #content <= $INLINE_BYTES then announced = announced .. ' ' .. content end
  redis.call('SPUBLISH', log, announced)
  redis.call('HSET', meta, 'last', at)
  if age_ms then
    redis.call('PEXPIRE', log, text(age_ms + 60000))
    redis.call('PEXPIRE', meta, lifetime_ms)
    if not trimmed then
      redis.call('XTRIM', log, 'MINID', text(now - age_ms * 1000))
      age_ms = nil
    end
  end
  if trimmed then is_untrimmed = true end
  highest, previous = offset, at
"""

_TRIM = """
-- Delete from the log of a room that has folded something what it does not keep.
function trim(log, count)
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

_TEXTS = """
-- Return a part of a text: where it begins, and its content.
local function part(folds, name, number)
  local value = redis.call('HGET', folds, name .. ':' .. number)
  local start, content = string.match(value, '^(%d+) (.*)$')
  return tonumber(start), content
end

-- Return the position of a code point in a string, counted from 0. It need not be there.
local function position_of(content, number)
  if not string.find(content, '[\\128-\\255]') then return number + 1 end
  for position in string.gmatch(content, '()[^\\128-\\191]') do
    if number == 0 then return position end
    number = number - 1
  end
  return #content + 1
end

-- Return whether a text has a piece at an offset.
local function holds(folds, key, offset, piece, length)
  if offset + length > key.length then return false end
  if piece == '' then return true end
  local low, high = 0, key.parts
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if part(folds, key.text, middle) <= offset then low = middle else high = middle - 1 end
  end
  local start, content = part(folds, key.text, low)
  local found = {string.sub(content, position_of(content, offset - start))}
  local missing = #piece - #found[1]
  while missing > 0 and low < key.parts do
    low = low + 1
    start, content = part(folds, key.text, low)
    found[#found + 1] = content
    missing = missing - #content
  end
  return string.sub(table.concat(found), 1, #piece) == piece
end

-- Delete the parts of a text.
local function delete_text(folds, name, parts)
  local fields = {}
  for number = 0, parts do fields[#fields + 1] = name .. ':' .. number end
  if #fields > 0 then redis.call('HDEL', folds, unpack(fields)) end
end
"""

_FIND_KEY = """
-- Return a key as its last write has left it; nil if the log does not have its entry.
local function find_key(folds, name, age_ms)
  local row = redis.call('HGET', folds, 'k' .. name)
  if not row then return nil end
  local text, at, attempt, length, size, is_closed, mode, parts, call =
    string.match(row, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d) (%a+) (%-?%d+) (%S+)$')
  local offset = tonumber(at)
  if offset <= now - age_ms * 1000 or (trimmed and offset <= trimmed) then return nil end
  return {
    row = row, text = text, at = at, offset = offset, attempt = tonumber(attempt),
    length = tonumber(length), size = tonumber(size), is_closed = is_closed == '1', mode = mode,
    parts = tonumber(parts), call = call,
  }
end

"""

_FOLD = (
    """
-- Store a key. Its number of parts is the one after this write.
local function row_of(key)
  return string.format('%s %s %d %d %d %s %s %d %s', key.text, key.at, key.attempt, key.length,
    key.size, key.is_closed and '1' or '0', key.mode, key.parts, key.call)
end

local function without(names, name)
  local first, last = string.find(names, '\\n' .. name .. '\\n', 1, true)
  if not first then return names end
  return string.sub(names, 1, first) .. string.sub(names, last + 1)
end

-- Return the open keys of a room, and one to close if another can then be opened; nil if it cannot.
local function find_space(folds, name, age_ms)
  local names = without(redis.call('HGET', folds, 'open') or '\\n', name)
  local _, count = string.gsub(names, '\\n', '')
  if count - 1 < $MAX_OPEN then return names end
  local left, idle = '\\n', nil
  count = 0
  for each in string.gmatch(names, '[^\\n]+') do
    local key = find_key(folds, each, age_ms)
    if key and not key.is_closed then
      left, count = left .. each .. '\\n', count + 1
      key.name = each
      if not idle or key.offset < idle.offset then idle = key end
    end
  end
  if count < $MAX_OPEN then return left end
  if idle.offset + $IDLE > now then return nil end
  return without(left, idle.name), idle
end

-- Forget the keys whose entries retention has deleted.
local function clean(folds)
  local garbage = redis.call('HGET', room, 'garbage')
  if not garbage then return end
  for name, parts, key in string.gmatch(garbage, '(%d+) (%-?%d+) %d+ %d+ ([^\\n]*)\\n') do
    delete_text(folds, name, tonumber(parts))
    local row = redis.call('HGET', folds, 'k' .. key)
    if row and string.match(row, '^%d+') == name then redis.call('HDEL', folds, 'k' .. key) end
  end
  redis.call('HDEL', room, 'garbage')
end

"""
    + CHECK_RECORD
    + CHANGE_RECORD
    + """
-- A publication with "fold", "job" or both.
function rich_unit(k, a, is_refused)
  if is_refused then -- all records of the call are read again at once
    local version, record = version_of(KEYS[k + 6], ARGV[a + 12])
    return '~ ' .. version .. ' ' .. record
  end
  local count, dedupe_ms, expiry = ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local call, content = ARGV[a + 5], ARGV[a + 6]
"""
    + _ENTER
    + """
  local folds, jobs = KEYS[k + 5], KEYS[k + 6]
  local name, piece, run = ARGV[a + 8], ARGV[a + 9], ARGV[a + 10]
  local is_folded, is_job = ARGV[a + 7] ~= '', ARGV[a + 1] == 'job'
  local age_limit_ms = string.match(expiry, '^%d+')
  local known = redis.call('GET', id)
  if known then
"""
    + _IF_REMEMBERED
    + """
  end
  if is_job then
    local expected = string.match(ARGV[a + 11], '^%S+')
    local version, record = version_of(jobs, ARGV[a + 12])
    if version ~= expected then return '~ ' .. version .. ' ' .. record end
    for n = 7, 8 do redis.call('ZCARD', KEYS[k + n]) end -- fails if it is of another type
  end
  if not is_folded then
    local added = redis.pcall('XADD', log, 'MAXLEN', trimmed and '1000000000' or count,
      at .. '-0', 'p', previous, 't', content)
    if type(added) == 'table' then return added end
    redis.call('SET', id, value, 'PX', dedupe_ms)
    change_record(k, a, offset, call, age_limit_ms)
"""
    + _FINISH
    + """
    return row .. ' 0 ' .. current
  end
  local mode, attempt, final, start, keeps_id, length, size, base =
    string.match(ARGV[a + 7], '^(%a+) (%d+) (%d) (%-?%d+) (%d) (%d+) (%d+) (%d+)$')
  attempt, start = tonumber(attempt), tonumber(start)
  length, size = tonumber(length), tonumber(size)

  local key = find_key(folds, name, age_limit_ms)
  local replaced = key -- what this write replaces the entry of
  local before = {length = 0, size = 0, parts = -1}
  if run ~= '' and (not key or key.is_closed) and has_ended(jobs, run) then
    return '! run_has_ended'
  end
  if key then
    if attempt < key.attempt then return '! stale_attempt ' .. text(key.attempt) end
    if key.is_closed then
      replaced = nil
    elseif mode ~= key.mode then
      return '! fold_mode ' .. text(key.attempt)
    elseif attempt == key.attempt then
      before = key
    end
  end
  if start >= 0 and start ~= before.length then
    if key and attempt == key.attempt and key.mode == 'append'
        and holds(folds, key, start, piece, length) then
      redis.call('HSET', folds, 'k' .. name, key.row) -- for WAIT
      local own, number = string.match(call, '^(.*):(%d+)$')
      local by, last = string.match(key.call, '^(.*):(%d+)$')
      if own == by and tonumber(number) <= tonumber(last) then
        return key.at .. ' 0 ' .. subscribers .. ' 2 ' .. current
      end
      return key.at .. ' 0 0 1 ' .. current
    end
    if key then attempt = key.attempt end
    return '! offset_mismatch ' .. text(attempt) .. ' ' .. text(before.length)
  end
  if mode == 'append' and base + before.size + size > $MAX_FOLDED then
    return '! payload_too_large'
  end
  local names, idle -- the open keys afterwards, if they change
  if final == '1' then
    names = redis.call('HGET', folds, 'open')
    names = names and without(names, name)
  elseif not replaced then
    names, idle = find_space(folds, name, age_limit_ms)
    if not names then return '! too_many_keys' end
    names = names .. name .. '\\n'
  end

  local new = {
    text = at, at = at, attempt = attempt, length = before.length + length,
    size = before.size + size, is_closed = final == '1', mode = mode, parts = -1, call = call,
  }
  local changes = {}
  if mode == 'append' then
    local last = piece
    new.parts = 0
    if before == key then
      new.text, new.parts = key.text, key.parts
      last = redis.call('HGET', folds, key.text .. ':' .. key.parts)
      if #last < $PART or piece == '' then
        last = last .. piece
      else
        new.parts, last = key.parts + 1, text(key.length) .. ' ' .. piece
      end
    else
      last = '0 ' .. piece
    end
    changes = {new.text .. ':' .. new.parts, last}
  end
  changes[#changes + 1] = 'k' .. name
  changes[#changes + 1] = row_of(new)
  if names then
    changes[#changes + 1] = 'open'
    changes[#changes + 1] = names
  end
  if idle then
    idle.is_closed = true
    changes[#changes + 1] = 'k' .. idle.name
    changes[#changes + 1] = row_of(idle)
  end
  if not trimmed then
    local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    trimmed = tonumber(oldest and oldest[2][2] or previous)
  end

  local field = new.text .. ' ' .. new.parts .. ' ' .. text(new.size) .. ' ' .. base .. ' ' .. name
  local added = redis.pcall('XADD', log, at .. '-0', 'p', previous, 't', content, 'f', field)
  if type(added) == 'table' then return added end
  if keeps_id == '1' then
    redis.call('SET', id, value, 'PX', dedupe_ms)
  end
  if replaced then
    redis.call('XDEL', log, key.at .. '-0')
    if before ~= key then delete_text(folds, key.text, key.parts) end
  else
    clean(folds)
  end
  redis.call('HSET', folds, unpack(changes))
  if not replaced or now % $UPKEEP < key.offset % $UPKEEP or now - key.offset > $UPKEEP then
    redis.call('PEXPIRE', folds, text(age_limit_ms + 60000))
  end
  if mode == 'append' then
    content = string.sub(content, 1, -3) .. ',"offset":' .. text(before.length) .. '}}'
  end
  if is_job then change_record(k, a, offset, call, age_limit_ms) end
  call = call .. ':f'
"""
    + _FINISH
    + """
  return row .. ' 0 ' .. current .. ' ' .. text(before.length)
end
"""
)

PUBLISH = make_script(
    _STATE
    + """
-- A unit is a publication. KEYS: state, log, meta, the key of its id; with "fold" or "job", the
-- hash of its room's keys, and jobs; with "job", index and times.
-- ARGV: job or fold if it has that. Then count, dedupe window (ms), age and lifetime of meta (ms)
--       of its room, name of this publication in its call, text.
--       With "fold" or "job": its mode, attempt, 1 if it is final, offset (-1: none), 1 if its id
--       is kept, length of the piece, its size inside a JSON string, and that of the rest; the name
--       of its key; the piece; the run that the key belongs to; each '' if there is none.
--       With "job": version of the record, 1 if it is changed, 1 if the event is an ending, 1 if
--       the record has ended, its status, the most records, their age (us); id of the job; run of
--       the event; run of the record, when it began, its type, the record.
-- Returns: offset, upper bound of the previous offset, subscribers, 1 for a duplicate, epoch; with
--          "fold" also the offset of its piece in the text. A call that is repeated with the same
--          name is no duplicate of itself; for a piece that it has stored already, the number is 2.
--          For a conflict: an exclamation mark, its code, the attempt of the key, the length of the
--          text. If the record has another version: a tilde, its version, the record. Of the same
--          call and room, no publication after it is stored: a tilde, and with "job" the same.
local function unit(k, a)
  local count, dedupe_ms, expiry = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3]
  local call, content = ARGV[a + 4], ARGV[a + 5]
"""
    + _ENTER
    + """
  local known = redis.call('SET', id, value, 'NX', 'GET', 'PX', dedupe_ms)
  if known then
"""
    + _IF_REMEMBERED
    + """
    redis.call('SET', id, value, 'PX', dedupe_ms)
  end
  -- A room that has folded something is trimmed afterwards.
  local added = redis.pcall('XADD', log, 'MAXLEN', trimmed and '1000000000' or count,
    at .. '-0', 'p', previous, 't', content)
  if type(added) == 'table' then -- such as WRONGTYPE: what is not stored must not be a duplicate
    redis.call('DEL', id)
    return added
  end
"""
    + _FINISH
    + """
  return row .. ' 0 ' .. current
end

local replies, k, a, n = {}, 0, 3, 1
local rich_unit, trim
local refused -- call and room of the publications that are not stored until a record is read again
while k < #KEYS do
  local done, reply
  local kind = ARGV[a + 1]
  local is_rich = kind == 'fold' or kind == 'job'
  local own = refused and string.match(ARGV[is_rich and a + 5 or a + 4], '^[^:]*') .. KEYS[k + 3]
  local is_refused = own and refused[own]
  if is_refused and kind ~= 'job' then
    done, reply = true, '~'
  elseif is_rich then
    if not rich_unit then
"""
    + _TEXTS
    + _FIND_KEY
    + _FOLD
    + """
    end
    done, reply = pcall(rich_unit, k, a, is_refused)
    if done and type(reply) == 'string' and string.byte(reply) == 126 then
      refused = refused or {}
      refused[string.match(ARGV[a + 5], '^[^:]*') .. KEYS[k + 3]] = true
    end
  else
    done, reply = pcall(unit, k, a)
  end
  if is_untrimmed then
    if not trim then
"""
    + _TRIM
    + """
    end
    trim(KEYS[k + 2], ARGV[is_rich and a + 2 or a + 1])
  end
  replies[n] = done and reply or {err = reply}
  n = n + 1
  if kind == 'fold' then
    k, a = k + 6, a + 10
  elseif kind == 'job' then
    k, a = k + 8, a + 17
  else
    k, a = k + 4, a + 5
  end
end
return replies
""",
    unit_keys=4,
    calls_units=True,
    constants=_CONSTANTS,
)
"""Store and announce publications. The channel of a room is named like its log, and what is
announced of a publication with ``fold`` says so after the name of its call."""

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
    constants=_CONSTANTS,
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

GET_JOB = make_script(make_get_job(_TEXTS + _FIND_KEY))
"""Read the record of a job, with the text of its run."""
