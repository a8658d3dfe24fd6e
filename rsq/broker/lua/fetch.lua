-- fetch: ready -> running; before that, delayed -> ready for what is due, and orphans' entries go to the caller
-- KEYS  T
-- ARGV  consumer, count (how many entries the caller has room for)
-- out   -1 when the consumer lost its lease, else
--       now ms, due time of the next delayed message (-1 = none), paused (0 | 1), priorities in use, most urgent first,
--       claimed: list of {priority, entry id, fields, deliveries, crashes ('' = none, else "<n> <how>"),
--         overdue ('' = no, else the time limit in s for which it was killed)},
--       fresh: list of {priority, entries}, one or more a priority,
--       revoked: the task ids among all these that are revoked,
--       cut (1 = there was room for more, which a bound of this call forbade),
--       unfinished (1 = something is left of flows, see go_on)
-- work  LATE consumers and ORPHANS, after a silence all consumers; PROMOTE messages that are due; `count` entries that are
--       handed out, CLAIM of them from orphans; each within the bytes of _budget
-- Afterwards every stream in use has its group, also when there was no room or the queue is paused.
-- include: _common
-- include: _heard
-- include: _absent
-- include: _budget
-- include: _member
local consumer, room = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
local PROMOTE, CLAIM = 200, 1000
-- Somebody else has to look at the queue, too: there is work that this call does not take, or that nobody waits for yet.
local more = false
local claimed, fresh = {}, {}
local to_hand_out = budget(room)

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

-- What most calls do not need is not made in them: each function costs as much as a small command.
local function rarely()
  -- include: _orphans
  -- include: _ready
  local self = { wake = wake }

  function self.unregister(late)
    unregister(late, now)
    more = more or #late == LATE
  end

  local function promote_one(id, packed)
    local message = cmsgpack.unpack(packed)
    more = add_ready(message[1], id, message[2], message[3], message[4]) or more
  end

  function self.promote()
    local due = redis.call('ZRANGEBYSCORE', T .. ':delayed', '-inf', now, 'LIMIT', 0, PROMOTE)
    local promoted, to_promote = {}, budget(#due)
    while to_promote.ask() > 0 do
      local some = { unpack(due, #promoted + 1, #promoted + to_promote.ask()) }
      for i, packed in ipairs(redis.call('HMGET', T .. ':messages', unpack(some))) do
        local id, size = some[i], packed and #packed or 0
        if packed and not pcall(promote_one, id, packed) then
          -- Not of our making: it goes the way of all that cannot be read, to the dead letters.
          redis.call('XADD', stream_of(0), '*', 'id', id, 'message', packed)
        end
        promoted[#promoted + 1] = id
        to_promote.spend(1, size, size)
      end
    end
    redis.call('ZREM', T .. ':delayed', unpack(promoted))
    redis.call('HDEL', T .. ':messages', unpack(promoted))
  end

  -- Takes some of what an orphan holds in one stream; false when that was all, or enough.
  local function claim_some(orphan, priority, stream)
    local wanted = math.min(to_hand_out.ask(), CLAIM - #claimed)
    if wanted == 0 then return false end
    local pending = on_group(stream, 'XPENDING', stream, GROUP, '-', '+', wanted, orphan)
    if #pending == 0 then return false end
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
        to_hand_out.spend(1, sizes({ entry }))
      end
    end
    -- Pending entries that were deleted from the stream: 7.0 and newer drop them in XCLAIM, older servers keep them.
    for id in pairs(deliveries) do
      redis.call('XACK', stream, GROUP, id)
      to_hand_out.spend(1, 0, 0)
    end
    return #pending == wanted
  end

  function self.claim(orphans, priority, stream)
    for _, orphan in ipairs(orphans) do
      repeat until not claim_some(orphan, priority, stream)
    end
  end

  function self.strike(orphans)
    for _, orphan in ipairs(orphans) do
      if not strike_if_empty(orphan) then more = true end
    end
    -- There may be others that were not drawn.
    more = more or #orphans == ORPHANS
  end

  return self
end

local in_rare_cases
local function rare()
  in_rare_cases = in_rare_cases or rarely()
  return in_rare_cases
end

-- The earliest of the delayed messages, as a list of id and time when it is due.
local function next_delayed() return redis.call('ZRANGE', T .. ':delayed', 0, 0, 'WITHSCORES') end

local function make_group(stream)
  -- With a range: without one it counts for each consumer what that holds.
  on_group(stream, 'XPENDING', stream, GROUP, '-', '+', 1)
end

-- Takes entries that nobody was given yet.
local function read(priority, stream)
  local wanted = to_hand_out.ask()
  if wanted == 0 then make_group(stream) end
  while wanted > 0 do
    local reply = on_group(stream, 'XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', wanted, 'STREAMS', stream, '>')
    local entries = reply and reply[1] and reply[1][2] or {}
    to_hand_out.spend(#entries, sizes(entries))
    if #entries > 0 then fresh[#fresh + 1] = { priority, entries } end
    wanted = #entries == wanted and to_hand_out.ask() or 0
  end
end

go_on_when_full()
listen(now)
local late = late_ones(now)
if #late > 0 then rare().unregister(late) end
if not holds_lease(consumer) then return -1 end

local delayed = next_delayed()
if delayed[2] and tonumber(delayed[2]) <= now then
  rare().promote()
  delayed = next_delayed()
end
local next_due = tonumber(delayed[2] or -1)

local unfinished = redis.call('EXISTS', string.match(T, '^{[^}]*}') .. '::todo')
local priorities = {}
local urgent = {}
-- As texts: numbers would be put in words for each look.
for p in string.gmatch('987654321', '%d') do urgent[#urgent + 1] = stream_of(p) end
if redis.call('EXISTS', unpack(urgent)) > 0 then
  for p = 9, 1, -1 do
    if redis.call('EXISTS', stream_of(p)) == 1 then priorities[#priorities + 1] = p end
  end
end
priorities[#priorities + 1] = 0

if redis.call('EXISTS', T .. ':paused') == 1 then
  for _, priority in ipairs(priorities) do make_group(stream_of(priority)) end
  return { now, next_due, 1, priorities, claimed, fresh, {}, 0, unfinished }
end

local orphans = some_orphans()
for _, priority in ipairs(priorities) do
  local stream = stream_of(priority)
  if #orphans > 0 then rare().claim(orphans, priority, stream) end
  read(priority, stream)
end
if #orphans > 0 then rare().strike(orphans) end

local revoked = {}
if redis.call('EXISTS', T .. ':revoked') == 1 then
  local function look_at(fields)
    if fields[1] ~= 'id' then return end
    local flow = flow_in(fields[8])
    if revoked_until(fields[2]) or flow and revoked_until('flow ' .. flow) then revoked[#revoked + 1] = fields[2] end
  end
  for _, row in ipairs(claimed) do look_at(row[3]) end
  for _, row in ipairs(fresh) do
    for _, entry in ipairs(row[2]) do look_at(entry[2]) end
  end
end
if more then rare().wake() end
return { now, next_due, 0, priorities, claimed, fresh, revoked, to_hand_out.used_up() and 1 or 0, unfinished }
