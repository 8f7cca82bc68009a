"""The part of PUBLISH for notifications with ``fold``, ``job`` or both."""

from __future__ import annotations

from .fold_scripts import CHANGE_KEYS, FIND_KEY, TEXTS
from .job_scripts import CHANGE_RECORD, CHECK_RECORD
from .publish_steps import ENTER, FINISH, IF_REMEMBERED

RICH_UNIT = (
    "local function text(offset) return string.format('%d', offset) end"
    + TEXTS
    + FIND_KEY
    + CHANGE_KEYS
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
    + ENTER
    + """
  local folds, jobs = KEYS[k + 5], KEYS[k + 6]
  local name, piece, run = ARGV[a + 8], ARGV[a + 9], ARGV[a + 10]
  local is_folded, is_job = ARGV[a + 7] ~= '', ARGV[a + 1] == 'job'
  local age_limit_ms = string.match(expiry, '^%d+')
  local known = redis.call('GET', id)
  if known then
    local reply
"""
    + IF_REMEMBERED
    + """
    if reply then return reply end
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
    + FINISH
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
    + FINISH
    + """
  return row .. ' 0 ' .. current .. ' ' .. text(before.length)
end
"""
)
"""Define ``rich_unit(k, a, is_refused)``, which returns the reply for a publication."""
