-- renew: the leases of a worker's consumers; one that is not registered any more stays lost
-- KEYS  T
-- ARGV  lease_ms, then the consumers
-- out   the consumers that lost their lease
-- work  the consumers given, LATE others, after a silence all consumers of the queue; 500 calls of one that is missing
-- What one that is missing for too long had acknowledged early is lost, and their callers hear of it.
-- Others whose lease ran out are unregistered meanwhile: an idle child looks for them more rarely than leases are renewed.
-- include: _common
-- include: _outcome
-- include: _heard
-- include: _absent
-- include: _orphans
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _member
-- include: _flow
-- include: _ending
local now, lease_ms, lost = now_ms(), tonumber(ARGV[1]), {}
go_on_when_full()
local shortest = listen(now)
for i = 2, #ARGV do
  -- It says 0 also where the deadline stays the same.
  if redis.call('ZADD', T .. ':consumers', 'XX', 'CH', now + lease_ms, ARGV[i]) == 0 and not holds_lease(ARGV[i]) then
    lost[#lost + 1] = ARGV[i]
  end
end
if #lost < #ARGV - 1 then hear(now, lease_ms, shortest) end
local late = late_ones(now)
unregister(late, now)
if #late > 0 then wake() end
local missing = redis.call('ZRANGEBYSCORE', MISSING, '-inf', now, 'LIMIT', 0, 1)[1]
if missing and end_taken(missing, now) == 0 then redis.call('ZREM', MISSING, missing) end
return lost
