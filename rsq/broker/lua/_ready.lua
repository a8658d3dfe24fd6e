-- Entries go into streams here and nowhere else in Lua. Needs _common.

-- Wake entries that nobody has settled yet: they count as no messages.
local WAKES, DAY_MS = T .. ':wakes', 86400000

-- What the functions below write is what they take it for.
local function expect_ready(priority)
  expect('stream', T .. ':stream', stream_of(priority))
  expect('zset', T .. ':consumers')
end

local function expect_delayed(priority)
  expect_ready(priority)
  expect('zset', T .. ':delayed')
  expect('hash', T .. ':messages')
end

-- True when the stream is new: nobody blocks on it yet, so somebody has to be woken.
local function add_ready(priority, id, task, body, meta)
  local stream = stream_of(priority)
  local new = tonumber(priority) ~= 0 and redis.call('EXISTS', stream) == 0
  redis.call('XADD', stream, '*', 'id', id, 'task', task, 'body', body, 'meta', meta)
  return new
end

-- The first entry of the plain stream that nobody was given yet, or nil.
local function unread()
  return redis.call('XRANGE', T .. ':stream', '(' .. (last_delivered(T .. ':stream') or '0-0'), '+', 'COUNT', 1)[1]
end

-- An entry without a call, which only lets somebody read it. True when one waits.
local function wake_waits()
  local entry = unread()
  return entry and entry[2][1] == 'wake'
end

-- Lets one worker that is blocked in its read return and look at the queue again. Nobody is while something is unread.
local function wake()
  if redis.call('ZCARD', T .. ':consumers') == 0 or unread() then return end
  redis.pcall('SADD', WAKES, redis.call('XADD', T .. ':stream', '*', 'wake', ''))
  redis.pcall('PEXPIRE', WAKES, DAY_MS)
end

-- Gives how many there were.
local function drop_wakes(entry_ids)
  redis.call('XACK', T .. ':stream', GROUP, unpack(entry_ids))
  redis.pcall('SREM', WAKES, unpack(entry_ids))
  return redis.call('XDEL', T .. ':stream', unpack(entry_ids))
end

-- With the last consumer gone nobody would take the wake entry, and it would be counted as a message that waits.
local function drop_wake()
  if wake_waits() then drop_wakes({ unread()[1] }) end
end

-- A blocked worker looks again after at most this long (ms), so only what is due sooner has to wake it.
local LONGEST_BLOCK_MS = 1000

local function add_delayed(now, due, priority, id, task, body, meta)
  local head = redis.call('ZRANGE', T .. ':delayed', 0, 0, 'WITHSCORES')[2]
  redis.call('HSET', T .. ':messages', id, cmsgpack.pack({ priority, task, body, meta }))
  redis.call('ZADD', T .. ':delayed', due, id)
  if due - now < LONGEST_BLOCK_MS and (not head or due < tonumber(head)) then wake() end
end
