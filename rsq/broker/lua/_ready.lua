-- Entries go into streams here and nowhere else in Lua. Needs _common.

-- Wake entries that nobody has settled yet: they count as no messages.
local WAKES, DAY_MS = T .. ':wakes', 86400000

-- What the functions below write is what they take it for.
local function expect_wake(queue)
  expect('stream', stream_of(0, queue))
  expect('zset', (queue or T) .. ':consumers')
end

local function expect_ready(priority, queue)
  expect('stream', stream_of(priority, queue))
  -- Somebody is woken for a new stream, and for what is delayed.
  if tonumber(priority) ~= 0 then expect_wake(queue) end
end

local function expect_delayed(priority, queue)
  expect_ready(priority, queue)
  expect_wake(queue)
  expect('zset', (queue or T) .. ':delayed')
  expect('hash', (queue or T) .. ':messages')
end

local function add_to(stream, id, task, body, meta)
  redis.call('XADD', stream, '*', 'id', id, 'task', task, 'body', body, 'meta', meta)
end

-- True when the stream is new: nobody blocks on it yet, so somebody has to be woken.
local function add_ready(priority, id, task, body, meta, queue)
  local stream = stream_of(priority, queue)
  local new = tonumber(priority) ~= 0 and redis.call('EXISTS', stream) == 0
  add_to(stream, id, task, body, meta)
  return new
end

-- The first entry of the plain stream that nobody was given yet, or nil.
local function unread(queue)
  local stream = stream_of(0, queue)
  return redis.call('XRANGE', stream, '(' .. (last_delivered(stream) or '0-0'), '+', 'COUNT', 1)[1]
end

-- An entry without a call, which only lets somebody read it. True when one waits.
local function wake_waits()
  local entry = unread()
  return entry and entry[2][1] == 'wake'
end

-- Lets one worker that is blocked in its read return and look at the queue again. Nobody is while something is unread.
local function wake(queue)
  if redis.call('ZCARD', (queue or T) .. ':consumers') == 0 or unread(queue) then return end
  local wakes = queue and queue .. ':wakes' or WAKES
  redis.pcall('SADD', wakes, redis.call('XADD', stream_of(0, queue), '*', 'wake', ''))
  redis.pcall('PEXPIRE', wakes, DAY_MS)
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

local function add_delayed(now, due, priority, id, task, body, meta, queue)
  local delayed = (queue or T) .. ':delayed'
  local head = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  redis.call('HSET', (queue or T) .. ':messages', id, cmsgpack.pack({ priority, task, body, meta }))
  redis.call('ZADD', delayed, due, id)
  if due - now < LONGEST_BLOCK_MS and (not head or due < tonumber(head)) then wake(queue) end
end

local function place(now, due, priority, id, task, body, meta, queue)
  if due > now then
    add_delayed(now, due, priority, id, task, body, meta, queue)
  elseif add_ready(priority, id, task, body, meta, queue) then
    wake(queue)
  end
end
