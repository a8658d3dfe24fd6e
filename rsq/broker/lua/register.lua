-- register: a consumer begins, with a lease; the group is made where it is missing
-- KEYS  T
-- ARGV  consumer, lease_ms, the name under which it was known before and lost its lease ('' = none): what it acknowledged
--       early under that, and still runs, it answers for from now on
-- out   now ms
-- include: _common
-- include: _orphans
-- include: _ready
-- include: _calls
local now = now_ms()
go_on_when_full()
local made = redis.pcall('XGROUP', 'CREATE', T .. ':stream', GROUP, '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
redis.call('ZADD', T .. ':consumers', now + tonumber(ARGV[2]), ARGV[1])
local former = ARGV[3] or ''
redis.call('ZREM', MISSING, ARGV[1], former)
if former ~= '' then
  -- The tokens stay as they are, for outcomes that are on their way.
  for _, id in ipairs(redis.call('SMEMBERS', taken_by(former))) do
    local record = record_of(id)
    if record.taken and record.taken[1] == former then
      record.taken[1] = ARGV[1]
      save(id, record)
      redis.call('SADD', taken_by(ARGV[1]), id)
    end
  end
  redis.call('DEL', taken_by(former))
end
return now
