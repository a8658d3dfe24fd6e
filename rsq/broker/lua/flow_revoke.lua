-- flow_revoke: a call that waits in a flow ends as revoked
-- KEYS  T
-- ARGV  flow id, number of the node
-- out   1 it has ended | 0 it does not wait there (any more)
-- work  what its end leads to, see _flow
-- include: _common
-- include: _ready
-- include: _calls
-- include: _flow
local told = flows(now_ms())
told.check()
local ends = told.revoke(ARGV[1], tonumber(ARGV[2]))
if not ends then return 0 end
told.go_on()
if told.write() > 0 then wake() end
return 1
