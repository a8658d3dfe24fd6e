-- disclaim: taken -> done, for calls that a living consumer acknowledged early and does not run: a failover lost what
-- became of them, and their callers hear of that
-- KEYS  T
-- ARGV  consumer, then the ids of the calls
-- out   number of calls that have ended by this
-- work  the calls given, 500 at most
-- include: _common
-- include: _outcome
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _member
-- include: _flow
-- include: _ending
go_on_when_full()
local ids = {}
for i = 2, #ARGV do ids[#ids + 1] = ARGV[i] end
return end_taken(ARGV[1], now_ms(), ids)
