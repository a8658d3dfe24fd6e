-- promote: the floor of what makes delayed tasks ready
-- KEYS  stream, zset of ids by due time, hash of packed messages
-- ARGV  now (ms), at most so many
-- out   number of tasks made ready
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #due == 0 then return 0 end
for i, packed in ipairs(redis.call('HMGET', KEYS[3], unpack(due))) do
  local message = cmsgpack.unpack(packed)
  redis.call('XADD', KEYS[1], '*', 'id', due[i], 'task', message[1], 'body', message[2], 'meta', message[3])
end
redis.call('ZREM', KEYS[2], unpack(due))
redis.call('HDEL', KEYS[3], unpack(due))
return #due
