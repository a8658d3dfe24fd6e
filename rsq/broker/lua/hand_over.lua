-- hand_over: a queue fires no slot of a schedule any more for definitions older than this generation
-- KEYS  T
-- ARGV  schedule, generation, ttl_ms (how long a beat that fell behind is remembered; the next slot fired keeps it again)
-- out   last slot fired in this queue, 0 = none
-- include: _common
local fired = T .. ':fired:' .. ARGV[1]
local newest, last = string.match(redis.call('GET', fired) or '0 0', '^(%d+) (%d+)$')
if tonumber(newest) < tonumber(ARGV[2]) then
  redis.call('SET', fired, ARGV[2] .. ' ' .. last, 'PX', ARGV[3])
end
return tonumber(last)
