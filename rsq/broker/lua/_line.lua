-- How a call gets its place among the events of its order; how it leaves that, see _slots. Needs _calls and _ready.

local function expect_line(order)
  expect('zset', line_of(order))
  expect('hash', CALLS)
  expect_delayed(0)
end

-- Puts a call in its line. False where it is the first one, or is in it already: then nothing is before it.
local function stands_in_line(order, id)
  local line = line_of(order)
  local behind = redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')[2]
  return redis.call('ZADD', line, 'NX', (behind or 0) + 1, id) == 1 and behind ~= nil
end
