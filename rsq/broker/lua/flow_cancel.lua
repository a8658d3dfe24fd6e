-- flow_cancel: a flow is ended before its time; what waits in it never starts, nor what is on its way
-- KEYS  T
-- ARGV  flow id, terminate (1 = what runs is interrupted), cancelled (the packed result of calls that end with it)
-- out   1 it is cancelled | 0 it had ended, or is not there
-- work  its queues; what else it ends, see _flow
-- include: _common
-- include: _ready
-- include: _calls
-- include: _flow
local told = flows(now_ms())
told.check()
local f = told.flow(ARGV[1])
if not told.stop(ARGV[1], 'cancelled', ARGV[3], ARGV[2] == '1') then
  return f and f.state == 'cancelled' and 1 or 0
end
told.go_on()
if told.write() > 0 then wake() end
return 1
