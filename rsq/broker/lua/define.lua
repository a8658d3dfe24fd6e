-- define: write, change or delete the definition of a schedule, unless somebody else was quicker
-- KEYS  B, the tag of the beat's keys
-- ARGV  schedule, generation that is to be replaced (0 = there is none), record ('' = delete),
--       due_ms of its next slot ('' = none)
-- out   the new generation (by the clock, so that it grows even where the keys were lost) | 0 nothing was changed
local B, name, record, due_ms = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
local kept = redis.call('HGET', B .. ':schedules', name)
if tonumber(kept and string.match(kept, '^(%d+):') or 0) ~= tonumber(ARGV[2]) then return 0 end
redis.call('HLEN', B .. ':last')
redis.call('ZCARD', B .. ':due')

local time = redis.call('TIME')
local generation = math.max(tonumber(redis.call('GET', B .. ':version') or 0) + 1, time[1] * 1000000 + time[2])
redis.call('SET', B .. ':version', string.format('%d', generation))
if record == '' then
  redis.call('HDEL', B .. ':schedules', name)
  redis.call('HDEL', B .. ':last', name)
else
  redis.call('HSET', B .. ':schedules', name, string.format('%d:', generation) .. record)
end
if record == '' or due_ms == '' then
  redis.call('ZREM', B .. ':due', name)
else
  redis.call('ZADD', B .. ':due', due_ms, name)
end
return generation
