-- renew: the leases of a worker's consumers; one that is not registered any more stays lost
-- KEYS  T
-- ARGV  lease_ms, then the consumers
-- out   the consumers that lost their lease
-- include: _common
local deadline, lost = now_ms() + tonumber(ARGV[1]), {}
go_on_when_full()
for i = 2, #ARGV do
  if holds_lease(ARGV[i]) then
    redis.call('ZADD', T .. ':consumers', deadline, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
