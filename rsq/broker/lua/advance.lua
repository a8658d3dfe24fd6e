-- advance: the next slots of schedules after some were fired; only ever forward, and only for the definition that fired
-- KEYS  B, the tag of the beat's keys
-- ARGV  for each schedule: its name, generation, due_ms of its next slot ('' = as it was),
--       last run as '<slot_ms> <queue> <id>' ('' = none)
-- out   number of schedules whose definition was still that one
local B, current = KEYS[1], 0
redis.call('ZCARD', B .. ':due')
redis.call('HLEN', B .. ':last')
for i = 1, #ARGV, 4 do
  local name, due_ms, last = ARGV[i], ARGV[i + 2], ARGV[i + 3]
  local kept = redis.call('HGET', B .. ':schedules', name)
  if kept and string.match(kept, '^(%d+):') == ARGV[i + 1] then
    current = current + 1
    if due_ms ~= '' then redis.call('ZADD', B .. ':due', 'XX', 'GT', due_ms, name) end
    local before = string.match(redis.call('HGET', B .. ':last', name) or '0', '^%d+')
    if last ~= '' and tonumber(before) < tonumber(string.match(last, '^%d+')) then
      redis.call('HSET', B .. ':last', name, last)
    end
  end
end
return current
