-- renew: the leases of a worker's consumers; one that is not registered any more stays lost
-- KEYS  T
-- ARGV  lease_ms, then the consumers
-- out   the consumers that lost their lease
-- What one that is missing for too long had acknowledged early is lost: 500 calls at most, their callers hear of it.
-- Others whose lease ran out are unregistered meanwhile: an idle child looks for them more rarely than leases are renewed.
-- include: _common
-- include: _orphans
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _ending
local now, lost = now_ms(), {}
local deadline = now + tonumber(ARGV[1])
go_on_when_full()
for i = 2, #ARGV do
  -- It says 0 also where the deadline stays the same.
  if redis.call('ZADD', T .. ':consumers', 'XX', 'CH', deadline, ARGV[i]) == 0 and not holds_lease(ARGV[i]) then
    lost[#lost + 1] = ARGV[i]
  end
end
if unregister_late(now) then wake() end
local missing = redis.call('ZRANGEBYSCORE', MISSING, '-inf', now, 'LIMIT', 0, 1)[1]
if missing and end_taken(missing, now) == 0 then redis.call('ZREM', MISSING, missing) end
return lost
