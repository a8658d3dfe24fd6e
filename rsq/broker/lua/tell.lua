-- tell: how far rsq has read a stream of others for a group -> the group stands there, and it is noted beside the stream
-- KEYS  the bare tag of the stream
-- ARGV  stream, group, position
-- out   1 it is told | 0 there is no such stream, so nobody to tell
-- Others may move the group; trimming goes by the note, too, and so takes nothing that was not read.
local stream, group, position = ARGV[1], ARGV[2], ARGV[3]
local about, KEPT_MS = KEYS[1] .. ':rsq:stream:' .. stream, 30 * 86400000
redis.call('HLEN', about)
if redis.call('XLEN', stream) == 0 and redis.call('EXISTS', stream) == 0 then return 0 end

local moved = redis.pcall('XGROUP', 'SETID', stream, group, position)
if moved.err then
  if not string.find(moved.err, 'NOGROUP', 1, true) then error(moved.err, 0) end
  redis.call('XGROUP', 'CREATE', stream, group, position)
end
local time = redis.call('TIME')
redis.call('HSET', about, 'read:' .. group, position .. ' ' .. time[1])
redis.call('PEXPIRE', about, string.format('%.0f', KEPT_MS))
return 1
