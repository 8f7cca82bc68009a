"""How a log in Redis folds notifications (see ``stores/folds.py``), and the functions for it.

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
from .job_scripts import CONSTANTS as JOB_CONSTANTS
from .script import us

PART_BYTES = 1024
"""About how large a part of a text is. Each piece rewrites the last one."""

UPKEEP_S = 30.0
"""The first publication of a room in each such time renews the expiry of its keys."""

CONSTANTS = {
    "PART": PART_BYTES,
    "UPKEEP": us(UPKEEP_S),
    "IDLE": us(IDLE_KEY_S),
    "MAX_OPEN": MAX_OPEN_KEYS,
    "MAX_FOLDED": MAX_FOLDED_BYTES,
    "MAX_PAGE": MAX_PAGE_BYTES,
    **JOB_CONSTANTS,
}

TEXTS = """
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
"""Functions that read and delete texts."""

FIND_KEY = """
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
"""A function that reads a key. It uses ``now`` and ``trimmed``."""

CHANGE_KEYS = """
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
"""Functions that open and close keys. They use ``now`` and ``room``."""
