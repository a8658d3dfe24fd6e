-- How a call gets its place among the events of its order; how it leaves that, see _slots. Needs _calls and _ready.

local function expect_line(order)
  expect('zset', line_of(order))
  expect('hash', CALLS)
  expect_delayed(0)
end

-- Calls of one look for those that wait for ever.
local LOST = 100

local function is_idle()
  for p = 0, 9 do
    if redis.call('XLEN', stream_of(p)) > 0 then return false end
  end
  return true
end

-- Lines whose first call is nowhere, since somebody has deleted it: { order, its id } of each. Looked for where nothing is
-- ready and nothing runs: then all that there is is delayed, or was acknowledged early. A line that stands still fills up,
-- so that no more is fed, and this comes to pass.
local function lost_heads(now)
  local found, seen = {}, {}
  if redis.call('ZCARD', T .. ':delayed') == 0 or not is_idle() then return found end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', T .. ':delayed', now + NEVER_MS / 2, '+inf', 'LIMIT', 0, LOST)) do
    local order = record_of(id).order
    if order and not seen[order] then
      seen[order] = true
      expect_line(order)
      local head = redis.call('ZRANGE', line_of(order), 0, 0)[1]
      if head == id or head and redis.call('HEXISTS', T .. ':messages', head) == 0 and not record_of(head).taken then
        found[#found + 1] = { order, head }
      end
    end
  end
  return found
end

-- Puts a call in its line. False where it is the first one, or is in it already: then nothing is before it.
local function stands_in_line(order, id)
  local line = line_of(order)
  local behind = redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')[2]
  return redis.call('ZADD', line, 'NX', (behind or 0) + 1, id) == 1 and behind ~= nil
end

-- The next one of a line follows, where its first call is lost.
local function go_past(order, head, now)
  local line = line_of(order)
  if redis.call('HEXISTS', T .. ':messages', head) == 0 then
    redis.call('ZREM', line, head)
    redis.call('HDEL', CALLS, head)
  end
  local following = redis.call('ZRANGE', line, 0, 0)[1]
  if following and redis.call('ZADD', T .. ':delayed', 'XX', 'CH', now, following) == 1 then wake() end
end
