-- bury: running or taken -> dead, for a batch of entries of one stream
-- KEYS  T
-- ARGV  consumer, priority, max_length, max_age_ms, then for each entry: entry id, task id, task, body,
--       meta, reason, error (packed record), attempts, result ('' = none), ttl_ms
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- include: _common
-- include: _settle
-- include: _ready
-- include: _held
local consumer, priority, max_length, max_age_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if not holds_lease(consumer) then return -1 end
local now = now_ms()
local dead, settled, ended = T .. ':dead', {}, {}
local replaced = redis.call('EXISTS', LATEST) == 1
for i = 5, #ARGV, 10 do
  local entry_id, id, result, ttl_ms = ARGV[i], ARGV[i + 1], ARGV[i + 8], ARGV[i + 9]
  if settle(consumer, stream_of(priority), entry_id, id) then
    settled[#settled + 1] = id
    local body = replaced and redis.call('HGET', LATEST, id) or ARGV[i + 3]
    redis.call('XADD', dead, 'MAXLEN', '~', max_length, '*', 'id', id, 'task', ARGV[i + 2], 'body', body,
      'meta', ARGV[i + 4], 'reason', ARGV[i + 5], 'error', ARGV[i + 6], 'attempts', ARGV[i + 7], 'priority', priority,
      'sent', string.match(entry_id, '^%d*'))
    if result ~= '' then publish_result(id, result, ttl_ms) end
    if leaves_no_trace(entry_id, id, result, ttl_ms, now) then ended[#ended + 1] = id end
  end
end
if #settled > 0 then
  redis.call('XTRIM', dead, 'MINID', '~', now - max_age_ms)
  -- The last letter's age: a queue that nobody uses any more leaves nothing behind.
  redis.call('PEXPIRE', dead, max_age_ms)
end
forget_crashes(settled)
forget_marks(settled)
give_up(settled, now)
remember_ended(ended, now)
count('dead', #settled)
return #settled
