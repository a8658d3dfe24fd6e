-- retry: running or taken -> delayed, for a batch of entries of one stream; the next attempt, or the same one put off
-- KEYS  T
-- ARGV  consumer, priority, counter ('retried' | 'deferred'),
--       then for each entry: entry id, task id, task, body, meta, delay_ms
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- include: _common
-- include: _ready
-- include: _settle
local consumer, priority, counter = ARGV[1], ARGV[2], ARGV[3]
if not holds_lease(consumer) then return -1 end
local now, settled = now_ms(), 0
for i = 4, #ARGV, 6 do
  if settle(consumer, stream_of(priority), ARGV[i], ARGV[i + 1]) then
    add_delayed(now, now + tonumber(ARGV[i + 5]), priority, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
    settled = settled + 1
  end
end
count(counter, settled)
return settled
