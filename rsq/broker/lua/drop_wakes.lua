-- drop_wakes: entries that carried no call are settled, at most 1,000
-- KEYS  T
-- ARGV  consumer, then the entry ids
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- include: _common
-- include: _ready
if not holds_lease(ARGV[1]) then return -1 end
local entry_ids = {}
for i = 2, #ARGV do entry_ids[#entry_ids + 1] = ARGV[i] end
local dropped = drop_wakes(entry_ids)
count('wakes', dropped)
return dropped
