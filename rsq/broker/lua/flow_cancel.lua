-- flow_cancel: a flow is ended before its time; what waits in it never starts
-- KEYS  T
-- ARGV  flow id, terminate (1 = what runs is interrupted), forget_ms (how long its marks are kept), cancelled (the packed
--       result of calls that end with it)
-- out   1 it is cancelled | 0 it had ended, or is not there
-- work  its queues; what else it ends, see _flow
-- include: _common
-- include: _ready
-- include: _calls
-- include: _flow
local id, terminate, forget_ms, now = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3]), now_ms()
local P = string.match(T, '^{[^}]*}')
local told = flows(now)
told.check()
local head = P .. '::flow:' .. id
local readable, queues = pcall(cmsgpack.unpack, redis.call('HGET', head, 'queues') or '\144')
local before = redis.call('HGET', head, 'state')
local ends = told.stop(id, 'cancelled', ARGV[4])
if not ends and not (before == 'cancelled' and terminate) then return before == 'cancelled' and 1 or 0 end
told.go_on()
for i = 1, readable and #queues or 0, 3 do expect('zset', P .. ':' .. queues[i] .. ':revoked') end

told.write()
-- Those of its calls that run, or are on their way, find it under a name that no call can have.
for i = 1, readable and #queues or 0, 3 do
  local revoked = P .. ':' .. queues[i] .. ':revoked'
  redis.call('ZADD', revoked, string.format('%.1f', now + forget_ms + (terminate and 0.5 or 0)), 'flow ' .. id)
  redis.call('PEXPIRE', revoked, forget_ms)
end
return 1
