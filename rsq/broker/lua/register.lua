-- register: a consumer begins, with a lease; the group is made where it is missing
-- KEYS  T
-- ARGV  consumer, lease_ms, the name under which it was known before and lost its lease ('' = none): what it acknowledged
--       early under that, and still runs, it answers for from now on; whatever else that holds without a lease is for others
-- out   now ms | 'moved': the queue lies in another partition
-- work  one consumer and what it took early; after a silence all consumers of the queue
-- include: _common
-- include: _heard
-- include: _orphans
-- include: _ready
-- include: _calls
local consumer, lease_ms, former, now = ARGV[1], tonumber(ARGV[2]), ARGV[3] or '', now_ms()
if pause_of() == 'moved' then return 'moved' end
go_on_when_full()
local made = redis.pcall('XGROUP', 'CREATE', T .. ':stream', GROUP, '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
local shortest = listen(now)
redis.call('ZADD', T .. ':consumers', now + lease_ms, consumer)
hear(now, lease_ms, shortest)
redis.call('ZREM', MISSING, consumer, former)
if former ~= '' then
  -- The tokens stay as they are, for outcomes that are on their way.
  for _, id in ipairs(redis.call('SMEMBERS', taken_by(former))) do
    local record = record_of(id)
    if record.taken and record.taken[1] == former then
      record.taken[1] = consumer
      save(id, record)
      redis.call('SADD', taken_by(consumer), id)
    end
  end
  redis.call('DEL', taken_by(former))
  if not holds_lease(former) and disown(former) then wake() end
end
return now
