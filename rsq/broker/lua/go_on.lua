-- go_on: what a script has left of flows is carried on, and a flow that has made no progress for too long is ended
-- KEYS  T
-- ARGV  expired (the packed result of calls that end with such a flow)
-- out   number of items that are left
-- work  ITEMS, within the budget of _flow; one flow that is due
-- include: _common
-- include: _ready
-- include: _calls
-- include: _flow
local ITEMS, P, now = 20, string.match(T, '^{[^}]*}'), now_ms()
local FLOWS, TODO = P .. '::flows', P .. '::todo'
local told, done = flows(now), 0
told.check()
for _, packed in ipairs(redis.call('LRANGE', TODO, 0, ITEMS - 1)) do
  if told.used_up() then break end
  local readable, item = pcall(cmsgpack.unpack, packed)
  if readable and type(item) == 'table' and #item == 8 then told.resume(unpack(item)) end
  done = done + 1
  told.go_on()
end
local due = not told.used_up() and redis.call('ZRANGEBYSCORE', FLOWS, '-inf', now, 'LIMIT', 0, 1)[1]
local ends = due and (told.seal(due, true) or told.stop(due, 'expired', ARGV[1]))
if ends then told.go_on() end

if done > 0 then redis.call('LTRIM', TODO, done, -1) end
-- One that has ended is not listed any more.
if due and not ends then redis.call('ZREM', FLOWS, due) end
told.write()
local left = redis.call('LLEN', TODO)
if left > 0 then wake() end
return left
