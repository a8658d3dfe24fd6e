-- commit: the floor of a batch of finished tasks, with nothing checked and nothing counted
-- KEYS  stream
-- ARGV  group, ttl_ms, then for each task: entry id, result key ('' = no result kept), result
local ids = {}
for i = 3, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
  if ARGV[i + 1] ~= '' then
    redis.call('SET', ARGV[i + 1], ARGV[i + 2], 'PX', ARGV[2])
    redis.call('PUBLISH', ARGV[i + 1], ARGV[i + 2])
  end
end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
redis.call('XDEL', KEYS[1], unpack(ids))
return #ids
