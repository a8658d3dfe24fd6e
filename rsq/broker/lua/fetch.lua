-- fetch: ready -> running; before that, delayed -> ready for what is due, and orphans' entries go to the caller
-- KEYS  T
-- ARGV  consumer, count (how many entries the caller has room for)
-- out   -1 when the consumer lost its lease, else
--       now ms, due time of the next delayed message (-1 = none), paused (0 | 1), priorities in use, most urgent first,
--       claimed: list of {priority, entry id, fields, deliveries, crashes ('' = none, else "<n> <how>"),
--         overdue ('' = no, else the time limit in s for which it was killed)},
--       fresh: list of {priority, entries},
--       revoked: the task ids among all these that are revoked
-- Afterwards every stream in use has its group, also when there was no room or the queue is paused.
-- include: _common
-- include: _orphans
-- include: _ready
local consumer, room = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
-- Bounds of one call, so that no call blocks the server for long.
local PROMOTE, ORPHANS, CLAIM = 200, 16, 1000

go_on_when_full()
unregister_late(now)
if not holds_lease(consumer) then return -1 end

-- Somebody else has to look at the queue, too: there is work that this call does not take, or that nobody waits for yet.
local more = false

local function promote(id, packed)
  local message = cmsgpack.unpack(packed)
  more = add_ready(message[1], id, message[2], message[3], message[4]) or more
end

local due = redis.call('ZRANGEBYSCORE', T .. ':delayed', '-inf', now, 'LIMIT', 0, PROMOTE)
if #due > 0 then
  for i, packed in ipairs(redis.call('HMGET', T .. ':messages', unpack(due))) do
    if packed and not pcall(promote, due[i], packed) then
      -- Not of our making: it goes the way of all that cannot be read, to the dead letters.
      redis.call('XADD', stream_of(0), '*', 'id', due[i], 'message', packed)
    end
  end
  redis.call('ZREM', T .. ':delayed', unpack(due))
  redis.call('HDEL', T .. ':messages', unpack(due))
end
local next_due = tonumber(redis.call('ZRANGE', T .. ':delayed', 0, 0, 'WITHSCORES')[2] or -1)

local priorities = {}
local urgent = {}
for p = 9, 1, -1 do urgent[#urgent + 1] = stream_of(p) end
if redis.call('EXISTS', unpack(urgent)) > 0 then
  for p = 9, 1, -1 do
    if redis.call('EXISTS', stream_of(p)) == 1 then priorities[#priorities + 1] = p end
  end
end
priorities[#priorities + 1] = 0

-- Runs a command on a stream; where the group is gone (flush, failover) it is made again from the very first entry.
local function on_group(stream, ...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    reply = redis.call(...)
  elseif type(reply) == 'table' and reply.err then
    error(reply.err, 0)
  end
  return reply
end

local function make_group(stream)
  on_group(stream, 'XPENDING', stream, GROUP)
end

local claimed, fresh = {}, {}
if redis.call('EXISTS', T .. ':paused') == 1 then
  for _, priority in ipairs(priorities) do make_group(stream_of(priority)) end
  return { now, next_due, 1, priorities, claimed, fresh, {} }
end

-- Takes what an orphan holds in one stream, as far as there is room.
local function claim(orphan, priority)
  if room == 0 then return end
  local stream = stream_of(priority)
  local pending = on_group(stream, 'XPENDING', stream, GROUP, '-', '+', math.min(room, CLAIM), orphan)
  if #pending == 0 then return end
  local ids, deliveries = {}, {}
  for i, row in ipairs(pending) do
    ids[i], deliveries[row[1]] = row[1], row[4] + 1
  end
  for _, entry in ipairs(redis.call('XCLAIM', stream, GROUP, consumer, 0, unpack(ids))) do
    if entry and entry[2] then
      local row = { priority, entry[1], entry[2], deliveries[entry[1]], '', '' }
      if entry[2][1] == 'id' then
        row[5] = redis.call('HGET', T .. ':crashes', entry[2][2]) or ''
        row[6] = redis.call('HGET', T .. ':overdue', entry[2][2]) or ''
      end
      claimed[#claimed + 1] = row
      deliveries[entry[1]] = nil
      room = room - 1
    end
  end
  -- Pending entries that were deleted from the stream: 7.0 and newer drop them in XCLAIM, older servers keep them.
  for id in pairs(deliveries) do redis.call('XACK', stream, GROUP, id) end
end

for i, orphan in ipairs(redis.call('SMEMBERS', T .. ':orphans')) do
  if i > ORPHANS then break end
  for _, priority in ipairs(priorities) do claim(orphan, priority) end
  if not strike_if_empty(orphan) then more = true end
end

for _, priority in ipairs(priorities) do
  local stream = stream_of(priority)
  if room == 0 then
    make_group(stream)
  else
    local reply = on_group(stream, 'XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', room, 'STREAMS', stream, '>')
    if reply and reply[1] then
      local entries = reply[1][2]
      fresh[#fresh + 1] = { priority, entries }
      room = room - #entries
    end
  end
end

local revoked = {}
local function look_at(fields)
  if fields[1] == 'id' and redis.call('ZSCORE', T .. ':revoked', fields[2]) then revoked[#revoked + 1] = fields[2] end
end
if redis.call('EXISTS', T .. ':revoked') == 1 then
  for _, row in ipairs(claimed) do look_at(row[3]) end
  for _, row in ipairs(fresh) do
    for _, entry in ipairs(row[2]) do look_at(entry[2]) end
  end
end
if more then wake() end
return { now, next_due, 0, priorities, claimed, fresh, revoked }
