-- redrive: dead -> ready, one dead letter as a fresh call under its old id
-- KEYS  T
-- ARGV  dead letter's entry id, task id, task, body, meta, priority
-- out   1 sent again | 0 the dead letter is not there any more
-- include: _common
-- include: _settle
-- include: _ready
local id = ARGV[2]
if redis.call('XDEL', T .. ':dead', ARGV[1]) == 0 then return 0 end
redis.call('DEL', T .. ':result:' .. id)
-- Whoever revoked it came after its end: it was not to run then, and is to run now.
forget_marks({ id })
if add_ready(ARGV[6], id, ARGV[3], ARGV[4], ARGV[5]) then wake() end
return 1
