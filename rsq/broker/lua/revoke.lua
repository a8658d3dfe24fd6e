-- revoke: delayed -> done; what waits elsewhere or runs is marked, and whoever gets or holds it sees to the rest
-- KEYS  T
-- ARGV  terminate (1 = what runs is interrupted), forget_ms (how long a mark is kept), result, ttl_ms, then the task ids,
--       at most 500
-- out   for each id: 'revoked' it was delayed and has ended | 'marked' it will not start, unless it runs already |
--       'done' it had ended before
-- include: _common
-- include: _outcome
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _member
-- include: _flow
-- include: _ending
local terminate, forget_ms, result, ttl_ms = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3], ARGV[4]
local now, ids, answers, revoked, marks, members = now_ms(), {}, {}, {}, {}, {}
for i = 5, #ARGV do
  ids[#ids + 1] = ARGV[i]
  note_delayed(members, ARGV[i], result)
end
look_up(ids, 'revoked', members)
expect('zset', REVOKED, T .. ':delayed')
for i, id in ipairs(ids) do
  local before = redis.call('GET', T .. ':result:' .. id)
  if redis.call('HEXISTS', T .. ':messages', id) == 1 then
    revoked[#revoked + 1] = id
    answers[i] = 'revoked'
  elseif before then
    -- The reply to an earlier try may have been lost.
    answers[i] = before == result and 'revoked' or 'done'
  else
    marks[#marks + 1] = { id, redis.call('ZSCORE', REVOKED, id) }
    answers[i] = 'marked'
  end
end

for _, id in ipairs(revoked) do
  redis.call('HDEL', T .. ':messages', id)
  redis.call('ZREM', T .. ':delayed', id)
  publish_result(id, result, ttl_ms, true)
end
finish(revoked, 'revoked', now)

if #marks > 0 then
  redis.call('ZREMRANGEBYSCORE', REVOKED, '-inf', now)
  for _, mark in ipairs(marks) do
    local interrupts = terminate or mark[2] and tonumber(mark[2]) % 1 > 0
    redis.call('ZADD', REVOKED, string.format('%.1f', now + forget_ms + (interrupts and 0.5 or 0)), mark[1])
  end
  redis.call('PEXPIRE', REVOKED, forget_ms)
end
return answers
