-- vacate: a queue that was never used leaves this partition for another one: nothing is taken in or handed out here again
-- KEYS  T
-- ARGV  none
-- out   'moved' | 'used': it holds, or has held, something | 'worked': a worker reads it here | 'paused'
-- What producers remember is caught: the first call that any of them sends to a queue goes through `enqueue`.
-- include: _common
if pause_of() == 'moved' then return 'moved' end
if redis.call('EXISTS', T .. ':paused') == 1 then return 'paused' end
if redis.call('EXISTS', T .. ':delayed', T .. ':messages', T .. ':dead', T .. ':stats', T .. ':calls') > 0 then
  return 'used'
end
local empty = {}
for p = 0, 9 do
  local info = redis.pcall('XINFO', 'STREAM', stream_of(p))
  for i = 1, info.err and 0 or #info, 2 do
    if info[i] == 'last-generated-id' and info[i + 1] ~= '0-0' then return 'used' end
  end
  if not info.err then empty[#empty + 1] = stream_of(p) end
end
if redis.call('ZCARD', T .. ':consumers') > 0 then return 'worked' end

redis.call('SET', T .. ':paused', 'moved')
if #empty > 0 then redis.call('DEL', unpack(empty)) end
return 'moved'
