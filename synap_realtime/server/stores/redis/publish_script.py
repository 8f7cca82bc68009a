"""The script that stores and announces publications."""

from __future__ import annotations

from .fold_scripts import CONSTANTS
from .publish_steps import ENTER, FINISH, IF_REMEMBERED, STATE, TRIM
from .rich_publications import RICH_UNIT
from .script import make_script

_NEXT = """
    if kind == 'fold' then
      k, a = k + 6, a + 10
    elseif kind == 'job' then
      k, a = k + 8, a + 17
    else
      k, a = k + 4, a + 5
    end
"""

# Most calls have a few plain publications, so the time until the first one matters: what is needed
# seldom is made where it is needed.
PUBLISH = make_script(
    """
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

local refused -- call and room of the publications that are not stored until a record is read again

-- Store publications until one fails: those whose keys and arguments begin after k and a.
local function run(replies, now, k, a)
  local KEYS, ARGV, redis, string = KEYS, ARGV, redis, string -- faster than globals
"""
    + STATE
    + """
  local rich_unit, trim
  local n = #replies + 1
  while k < #KEYS do
    local kind = ARGV[a + 1]
    local is_rich = kind == 'fold' or kind == 'job'
    local own = refused and string.match(ARGV[is_rich and a + 5 or a + 4], '^[^:]*') .. KEYS[k + 3]
    local is_refused = own and refused[own]
    local reply
    if is_refused and kind ~= 'job' then
      reply = '~'
    elseif is_rich then
      if not rich_unit then
"""
    + RICH_UNIT
    + """
      end
      reply = rich_unit(k, a, is_refused)
      if type(reply) == 'string' and string.byte(reply) == 126 then
        refused = refused or {}
        refused[string.match(ARGV[a + 5], '^[^:]*') .. KEYS[k + 3]] = true
      end
    else
      local count, dedupe_ms, expiry = kind, ARGV[a + 2], ARGV[a + 3]
      local call, content = ARGV[a + 4], ARGV[a + 5]
"""
    + ENTER
    + """
      local known = redis.call('SET', id, value, 'NX', 'GET', 'PX', dedupe_ms)
      if known then
"""
    + IF_REMEMBERED
    + """
        if not reply then redis.call('SET', id, value, 'PX', dedupe_ms) end
      end
      if not reply then
        -- A room that has folded something is trimmed afterwards.
        local added = redis.pcall('XADD', log, 'MAXLEN', trimmed and '1000000000' or count,
          at .. '-0', 'p', previous, 't', content)
        if type(added) == 'table' then -- such as WRONGTYPE: what is not stored is no duplicate
          redis.call('DEL', id)
          reply = added
        else
"""
    + FINISH
    + """
          reply = row .. ' 0 ' .. current
        end
      end
    end
    if is_untrimmed then
      if not trim then
"""
    + TRIM
    + """
      end
      trim(KEYS[k + 2], ARGV[is_rich and a + 2 or a + 1])
    end
    replies[n] = reply
    n = n + 1
"""
    + _NEXT
    + """
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] + ARGV[3]
local replies, k, a, n = {}, 0, 3, 0
while true do
  local done, problem = pcall(run, replies, now, k, a)
  if done then return replies end
  replies[#replies + 1] = {err = problem}
  for number = n + 1, #replies do
    local kind = ARGV[a + 1]
"""
    + _NEXT
    + """
  end
  n = #replies
end
""",
    unit_keys=4,
    calls_units=True,
    common="",
    constants=CONSTANTS,
)
"""Store and announce publications. The channel of a room is named like its log, and what is
announced of a publication with ``fold`` says so after the name of its call."""
