-- register: a consumer begins, with a lease; the group is made where it is missing
-- KEYS  T
-- ARGV  consumer, lease_ms
-- out   now ms
-- include: _common
local now = now_ms()
go_on_when_full()
local made = redis.pcall('XGROUP', 'CREATE', T .. ':stream', GROUP, '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
redis.call('ZADD', T .. ':consumers', now + tonumber(ARGV[2]), ARGV[1])
return now
