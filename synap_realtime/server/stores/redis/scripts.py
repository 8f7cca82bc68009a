"""The scripts of a store: all that run inside Redis. See ``script.py``."""

from __future__ import annotations

from .job_scripts import LIST_JOBS
from .log_scripts import GET_JOB, HEAD, READ
from .publish_script import PUBLISH
from .script import make_script

CLAIM = make_script(
    """
-- KEYS: state.
local function unit(k) return epoch(KEYS[k + 1]) end
""",
    unit_keys=1,
)
"""Note in a partition which server is the primary. Otherwise a partition that is not used until its
former primary takes over again would seem never to have had another one."""

RENEW = make_script("""
-- KEYS: state. ARGV[4..]: how long ago the former server has acknowledged a publish (us).
-- Returns: 1 if that was after the epoch began. Then there is a new one.
local current = epoch(KEYS[1])
local began = string.match(redis.call('GET', KEYS[1]), '^%S+ %S+ (%d+)$')
if not began or clock() - ARGV[4] <= tonumber(began) then return 0 end
redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1] .. ' ' .. text(clock()))
return 1
""")
"""Begin a new epoch if another server has acknowledged a publish since this one began the current
epoch. Both times are durations, so that no clocks of different machines are compared."""

JOIN = make_script(
    """
-- KEYS: state, meta, rooms of the node. ARGV: lifetime of meta (us), room, the node's subscribers
-- of it.
-- Returns: epoch, a position that is not before any entry.
local function unit(k, a)
  local current, meta, rooms = epoch(KEYS[k + 1]), KEYS[k + 2], KEYS[k + 3]
  local room, count = ARGV[a + 2], tonumber(ARGV[a + 3])
  local before = tonumber(redis.call('HGET', rooms, room)) or 0
  if count == 0 then
    redis.call('HDEL', rooms, room)
  elseif count ~= before then
    redis.call('HSET', rooms, room, ARGV[a + 3])
  end
  local found = redis.call('HMGET', meta, 'last', 'head', 'subscribers')
  local last, head = tonumber(found[1]) or 0, tonumber(found[2]) or 0
  local all = (tonumber(found[3]) or 0) + count - before
  local position = math.max(last, head)
  if all < 0 or (all == 0 and count == 0) then
    redis.call('HDEL', meta, 'subscribers')
  elseif count > 0 and position == 0 then
    position = clock()
    redis.call('HSET', meta, 'subscribers', text(all), 'head', text(position))
  elseif count ~= before then
    redis.call('HSET', meta, 'subscribers', text(all))
  end
  if redis.call('PTTL', meta) < ARGV[a + 1] / 2000 then
    redis.call('PEXPIRE', meta, text(ARGV[a + 1] / 1000))
  end
  return {current, text(position)}
end
""",
    unit_keys=3,
    unit_arguments=3,
)
"""Set how many subscribers of a room a node has."""

ACK = make_script("""
-- KEYS: state, acks. ARGV[4..]: most devices, age of a device (us), then
-- for each: device or '', epoch, offset.
local current = epoch(KEYS[1])
local now, most, age = clock(), tonumber(ARGV[4]), tonumber(ARGV[5])
for n = 6, #ARGV, 3 do
  local name, offset = ARGV[n], tonumber(ARGV[n + 2])
  if ARGV[n + 1] == current or offset == 0 then
    local known = redis.call('HGET', KEYS[2], name)
    if known then
      local by, o = string.match(known, '^(%S+) (%S+) ')
      if by == current then offset = math.max(offset, tonumber(o)) end
    end
    redis.call('HSET', KEYS[2], name, current .. ' ' .. text(offset) .. ' ' .. text(now + n))
  end
end
if redis.call('HLEN', KEYS[2]) > most + 1 then
  local all, devices = redis.call('HGETALL', KEYS[2]), {}
  for n = 1, #all, 2 do
    if all[n] ~= '' then
      devices[#devices + 1] = {all[n], tonumber(string.match(all[n + 1], '(%S+)$')), n}
    end
  end
  table.sort(devices, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[3] < b[3]) end)
  for n, device in ipairs(devices) do
    if n > #devices - most and device[2] > now - age then break end
    redis.call('HDEL', KEYS[2], device[1])
  end
end
redis.call('PEXPIRE', KEYS[2], text(age / 1000))
return 0
""")
"""Advance acknowledged cursors."""

GET_ACK = make_script(
    """
-- KEYS: acks. ARGV: device or '', age of a device (us).
-- Returns: epoch and offset; nothing if there is no acknowledged cursor.
local function unit(k, a)
  local found = redis.call('HMGET', KEYS[k + 1], ARGV[a + 1], '')
  for n = 1, 2 do
    if found[n] then
      local by, offset, at = string.match(found[n], '^(%S+) (%S+) (%S+)$')
      if n == 2 or tonumber(at) > clock() - ARGV[a + 2] then return {by, offset} end
    end
  end
  return {}
end
""",
    unit_keys=1,
    unit_arguments=2,
)
"""Return an acknowledged cursor."""

CHECK = make_script("""
-- KEYS: schema. ARGV[4..]: version. Returns the version of the keys.
local version = redis.call('GET', KEYS[1]) or ARGV[4]
redis.call('SET', KEYS[1], version)
return version
""")
"""Write something, and return the version of the schema."""

PROBE = make_script("""
-- KEYS: a key that never exists. ARGV[4..]: channel.
-- A server that may not write, because it was replaced or has lost its cluster, rejects it.
redis.call('DEL', KEYS[1])
redis.call('SPUBLISH', ARGV[4], '')
return 0
""")
"""Send a message to the node itself."""

PROBE_AS_NODE = make_script("""
-- KEYS: nodes, departed nodes. ARGV[4..]: node, its probe channel, lifetime of a node (us).
-- Returns: 1 if the node was not listed, the nodes that sent no probe for their lifetime, and the
--          departed ones whose time is over.
local now = clock()
-- A clock that is behind, as that of a new primary may be, must not keep failed nodes for longer.
local latest = {text(now), text(now + 60000000)}
for n = 1, 2 do
  for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[n], '(' .. latest[n], '+inf')) do
    redis.call('ZADD', KEYS[n], latest[n], node)
  end
end
local is_new = redis.call('ZADD', KEYS[1], text(now), ARGV[4])
redis.call('SPUBLISH', ARGV[5], '')
return {
  is_new,
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(now - ARGV[6]), 'LIMIT', 0, 10),
  redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', text(now), 'LIMIT', 0, 10),
}
""")
"""Send a message to the node itself, and keep the node alive."""

ROOMS_OF_NODE = make_script(
    "local function unit(k) return redis.call('HKEYS', KEYS[k + 1]) end", unit_keys=1
)
"""Return the rooms that a node has subscribers of, in one partition."""

REMOVE_NODE = make_script("""
-- KEYS: nodes, departed nodes. ARGV[4..]: node, how long what it has stored stays (us).
redis.call('ZREM', KEYS[1], ARGV[4])
if ARGV[5] == '0' then return redis.call('ZREM', KEYS[2], ARGV[4]) end
return redis.call('ZADD', KEYS[2], text(clock() + ARGV[5]), ARGV[4])
""")
"""Remove a node from the list of nodes."""

SET_PRESENCE = make_script(
    """
-- KEYS: presence, rooms in which the node has users. ARGV: node, room, 1 to remove all users of the
--       node that are not given, 1 if the node has users of the room, a JSON array with name and
--       state, or '' to remove it, of each user.
-- Only differences are stored and announced.
local function unit(k, a)
  local presence, rooms, prefix = KEYS[k + 1], KEYS[k + 2], ARGV[a + 1] .. ':'
  local given, is_given, changed = cjson.decode(ARGV[a + 5]), {}, {}
  local before, version
  local function set(field, state)
    version = version or text(math.max(clock(), before + 1))
    if state == '' then
      redis.call('HDEL', presence, field)
      redis.call('HSET', presence, 'version', version)
    else
      redis.call('HSET', presence, field, state, 'version', version)
    end
    changed[#changed + 1] = string.sub(field, #prefix + 1)
    changed[#changed + 1] = state
  end
  for n = 1, #given, 2 do
    local field, state = prefix .. given[n], given[n + 1]
    local known = redis.call('HMGET', presence, field, 'version')
    before = before or tonumber(known[2]) or 0
    is_given[field] = true
    if (known[1] or '') ~= state then set(field, state) end
  end
  if ARGV[a + 3] == '1' then
    before = before or tonumber(redis.call('HGET', presence, 'version')) or 0
    for _, field in ipairs(redis.call('HKEYS', presence)) do
      if string.sub(field, 1, #prefix) == prefix and not is_given[field] then set(field, '') end
    end
  end
  if ARGV[a + 4] == '1' then
    redis.call('SADD', rooms, ARGV[a + 2])
  else
    redis.call('SREM', rooms, ARGV[a + 2])
  end
  if #changed == 0 then return 0 end
  if ARGV[a + 4] ~= '1' and redis.call('HLEN', presence) == 1 then
    redis.call('DEL', presence)
  end
  local content = cjson.encode(changed)
  if #content > $INLINE_BYTES then content = '' end
  local announced = text(before) .. ' ' .. version .. ' ' .. ARGV[a + 1] .. ' ' .. content
  return redis.call('SPUBLISH', presence, announced)
end
""",
    unit_keys=2,
    unit_arguments=5,
)
"""Store and announce users of a room at a node. The channel is named like the hash."""

READ_PRESENCE = make_script("""
-- KEYS: presence, meta, rooms of the node, state. ARGV[4..]: room.
-- Returns: epoch, version, connections at other nodes, then field and state of each user at each
--          node.
local found = redis.call('HGETALL', KEYS[1])
local version
local subscribers = tonumber(redis.call('HGET', KEYS[2], 'subscribers')) or 0
local own = tonumber(redis.call('HGET', KEYS[3], ARGV[4])) or 0
local reply = {epoch(KEYS[4]), '', subscribers - own}
for n = 1, #found, 2 do
  if found[n] == 'version' then
    version = found[n + 1]
  else
    reply[#reply + 1] = found[n]
    reply[#reply + 1] = found[n + 1]
  end
end
reply[2] = version or text(clock())  -- later than all changes before
return reply
""")
"""Read the users of a room."""

COUNT_CONNECTIONS = make_script(
    """
-- KEYS: users of the node, connections of the user. ARGV: node, user, connections at the node, how
--       many more it asks for, the most at all nodes.
-- Returns: how many more it gets.
local function unit(k, a)
  local users, connections, node, user = KEYS[k + 1], KEYS[k + 2], ARGV[a + 1], ARGV[a + 2]
  local count, more = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  if more > 0 then
    local others, known = 0, redis.call('HGETALL', connections)
    for n = 1, #known, 2 do
      if known[n] ~= node then others = others + known[n + 1] end
    end
    more = math.max(0, math.min(more, ARGV[a + 5] - others - count))
    count = count + more
  end
  if count > 0 then
    redis.call('HSET', connections, node, text(count))
    redis.call('SADD', users, user)
  else
    redis.call('HDEL', connections, node)
    redis.call('SREM', users, user)
  end
  return more
end
""",
    unit_keys=2,
    unit_arguments=5,
)
"""Set how many connections a user has at a node, and add some if all nodes together allow it."""

MEMBERS = make_script(
    "local function unit(k) return redis.call('SMEMBERS', KEYS[k + 1]) end", unit_keys=1
)
"""Return what a node has stored in one partition."""

USAGE = make_script("return string.match(redis.call('INFO', 'memory'), 'used_memory:(%d+)')")
"""Return the memory that Redis uses, in bytes."""

LIVE_NODES = make_script("""
-- KEYS: nodes. ARGV[4..]: lifetime of a node (us). Returns: the nodes that are alive.
return redis.call('ZRANGEBYSCORE', KEYS[1], text(clock() - ARGV[4]), '+inf')
""")
"""List the nodes."""

SEND = make_script("return redis.call('SPUBLISH', KEYS[1], ARGV[4])")
"""Publish a message to a channel."""

TAKE_RATES = make_script("""
-- KEYS: a key for each rate, with the time when its bucket is full again.
-- ARGV[4..]: for each: amount a second, cost, what is taken in addition if there is enough.
-- Returns: 1 if the addition was taken, then how long each rate has to wait (us). Nothing is taken
--          unless all have enough.
local now, burst = clock(), 1000000
local known = redis.call('MGET', unpack(KEYS))
local function take(ahead)
  local reply, full, enough = {tostring(ahead)}, {}, true
  for n = 1, #KEYS do
    local cost = ARGV[3 * n + 2] + ahead * ARGV[3 * n + 3]
    -- At most a burst, so that a clock that is set back blocks nobody for longer.
    local since = math.min(math.max(now, tonumber(known[n] or 0)), now + burst)
    full[n] = since + math.ceil(cost * 1000000 / ARGV[3 * n + 1])
    local wait = math.max(0, full[n] - now - burst)
    if wait > 0 then enough = false end
    reply[n + 1] = text(wait)
  end
  if enough then
    for n = 1, #KEYS do
      local expiry_ms = math.ceil((full[n] - now) / 1000) + 1000
      redis.call('SET', KEYS[n], text(full[n]), 'PX', text(expiry_ms))
    end
  end
  return enough, reply
end
local enough, reply = take(1)
if not enough then enough, reply = take(0) end
return reply
""")
"""Take from several rates of a caller (GCRA with a burst of a second's amount)."""

ALL = (
    *(PUBLISH, READ, HEAD, GET_JOB, LIST_JOBS, CLAIM, RENEW, JOIN, ACK, GET_ACK, CHECK, USAGE),
    *(PROBE, PROBE_AS_NODE, ROOMS_OF_NODE, REMOVE_NODE),
    *(LIVE_NODES, SEND, TAKE_RATES),
    *(SET_PRESENCE, READ_PRESENCE, COUNT_CONNECTIONS, MEMBERS),
)

CONFIRMED = frozenset({PUBLISH.sha, CHECK.sha})
"""The scripts whose writes have to be at a replica before the call returns, if the store promises
that."""

ACCESS = make_script("""
-- ARGV: commands with their arguments, separated by spaces. Runs none of them.
-- Returns the number of each that the user is not allowed to run, and minus that of each unknown.
local refused = {}
for n, line in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(line, '%S+') do words[#words + 1] = word end
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not known then refused[#refused + 1] = -n elseif not allowed then refused[#refused + 1] = n end
end
return refused
""")
"""Ask Redis which commands the user may run."""
