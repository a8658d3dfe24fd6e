-- complete: running or taken -> done, for a batch of entries of one stream
-- KEYS  T
-- ARGV  consumer, priority, counter, then for each entry: entry id, task id, result ('' = none), ttl_ms
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- include: _common
-- include: _settle
-- include: _ready
-- include: _held
local consumer, stream, counter = ARGV[1], stream_of(ARGV[2]), ARGV[3]
if not holds_lease(consumer) then return -1 end
local now = now_ms()
local whole = settle_whole(stream, 4, 4)
local settled, ended = {}, {}
for i = 4, #ARGV, 4 do
  local entry_id, id, result, ttl_ms = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if whole or settle(consumer, stream, entry_id, id) then
    settled[#settled + 1] = id
    if result ~= '' then publish_result(id, result, ttl_ms) end
    if leaves_no_trace(entry_id, id, result, ttl_ms, now) then ended[#ended + 1] = id end
  end
end
forget_crashes(settled)
forget_marks(settled)
give_up(settled, now, counter == 'succeeded')
remember_ended(ended, now)
count(counter, #settled)
return #settled
