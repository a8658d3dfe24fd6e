-- Deletes `entry_ids` from `stream`, which are settled. Where they are all that is left before what is still to be done, whole
-- nodes of the stream are dropped: XDEL goes through half a node for each entry. Needs _common.
local last = last_delivered(stream)
local pending = redis.call('XPENDING', stream, GROUP, '-', last, 1)[1]
-- All before it that was delivered has been settled, and what is settled is deleted.
local kept = pending and pending[1] or string.gsub(last, '%d+$', function(n) return string.format('%.0f', n + 1) end)
if redis.call('XTRIM', stream, 'MINID', kept) < #entry_ids then redis.call('XDEL', stream, unpack(entry_ids)) end
