-- revoke: delayed -> done; what waits elsewhere or runs is marked, and whoever gets or holds it sees to the rest
-- KEYS  T
-- ARGV  terminate (1 = what runs is interrupted), forget_ms (how long a mark is kept), result, ttl_ms, then the task ids
-- out   for each id: 'revoked' it was delayed and has ended | 'marked' it will not start, unless it runs already |
--       'done' it had ended before
-- include: _common
-- include: _settle
-- include: _ready
-- include: _held
local terminate, forget_ms, result, ttl_ms = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3], ARGV[4]
local now, answers, revoked, marks = now_ms(), {}, {}, {}
for i = 5, #ARGV do
  local id = ARGV[i]
  local before = redis.call('GET', T .. ':result:' .. id)
  if redis.call('HDEL', T .. ':messages', id) == 1 then
    redis.call('ZREM', T .. ':delayed', id)
    publish_result(id, result, ttl_ms)
    revoked[#revoked + 1] = id
    answers[#answers + 1] = 'revoked'
  elseif before then
    -- The reply to an earlier try may have been lost.
    answers[#answers + 1] = before == result and 'revoked' or 'done'
  else
    marks[#marks + 1] = id
    answers[#answers + 1] = 'marked'
  end
end
forget_crashes(revoked)
forget_marks(revoked)
give_up(revoked, now)
count('revoked', #revoked)

local function mark(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  for _, id in ipairs(marks) do redis.call('ZADD', key, now + forget_ms, id) end
  redis.call('PEXPIRE', key, forget_ms)
end

if #marks > 0 then
  mark(T .. ':revoked')
  if terminate then mark(T .. ':terminate') end
end
return answers
