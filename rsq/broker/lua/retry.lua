-- retry: running or taken -> delayed, for a batch of entries of one stream; the next attempt, or the same one put off
-- KEYS  T
-- ARGV  consumer, priority, counter ('retried' | 'deferred' | 'limited'),
--       then for each entry: entry id, task id, task, body, meta, delay_ms,
--       slot that it waits for ('' = none), how many of it there are
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- include: _common
-- include: _ready
-- include: _settle
-- include: _held
local consumer, priority, counter = ARGV[1], ARGV[2], ARGV[3]
if not holds_lease(consumer) then return -1 end
local now, settled = now_ms(), {}
-- What was revoked meanwhile does not wait: it comes back at once, to be settled without another run.
local some_revoked = redis.call('EXISTS', T .. ':revoked') == 1
local function delay_of(id, delay_ms)
  return some_revoked and redis.call('ZSCORE', T .. ':revoked', id) and 0 or tonumber(delay_ms)
end
for i = 4, #ARGV, 8 do
  if settle(consumer, stream_of(priority), ARGV[i], ARGV[i + 1]) then
    add_delayed(now, now + delay_of(ARGV[i + 1], ARGV[i + 5]), priority, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
    settled[#settled + 1] = ARGV[i + 1]
    if ARGV[i + 6] ~= '' then park(ARGV[i + 1], ARGV[i + 6], tonumber(ARGV[i + 7]), now) end
  end
end
forget_overdue(settled)
let_go(settled, now)
count(counter, #settled)
return #settled
