-- flow_seal: an open batch is sealed, or kept open by the one who fills it
-- KEYS  T
-- ARGV  flow id, seal (1, or 0 = it stays open for the time of its lease)
-- out   1 | 0 it is not open (any more)
-- work  what the end of a batch leads to, see _flow
-- include: _common
-- include: _ready
-- include: _calls
-- include: _flow
local told = flows(now_ms())
told.check()
local done = ARGV[2] == '1' and told.seal(ARGV[1], false) or ARGV[2] == '0' and told.keep_open(ARGV[1])
if not done then return 0 end
told.go_on()
if told.write() > 0 then wake() end
return 1
