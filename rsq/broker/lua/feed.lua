-- feed: events of a source -> ready, once each: the calls and how far the source was read are one step
-- KEYS  T
-- ARGV  source (its group and its stream, as they stand in keys), feeder, lease_ms (for so long nobody else feeds it; 0 = it
--       feeds no more), window (most calls that wait for a worker), after (how far the feeder believes that it was read; ''
--       = never), upto (how far it is read with these; '' = it only asks), then rows, at most 1,000
-- out   who is to feed, how far it was read ('' = never), and of
--       'you': room for so many more now | 'other': ms, after which to ask again | 'moved': 0, the queue lies elsewhere
-- Events are taken only where `after` is how far it was read: a step that is repeated, or comes late, changes nothing. So
-- two who feed at once do no harm; the lease only spares the work.
-- rows: Fed
-- include: _common
local source, feeder, lease_ms, window = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local after, upto = ARGV[5], ARGV[6]
local stream, sources, lease = stream_of(0), T .. ':sources', T .. ':feeder:' .. source
if pause_of() == 'moved' then return { 'moved', '', 0 } end
local position, holder = redis.call('HGET', sources, source) or '', redis.call('GET', lease)
if holder and holder ~= feeder then return { 'other', position, math.max(0, redis.call('PTTL', lease)) } end
local fed = (#ARGV - 6) / WIDTH
expect('stream', stream)

if lease_ms > 0 then
  redis.call('SET', lease, feeder, 'PX', lease_ms)
else
  redis.call('DEL', lease)
end
if upto ~= '' and position == after then
  for i = 7, #ARGV, WIDTH do
    redis.call('XADD', stream, '*', 'id', ARGV[i + ID], 'task', ARGV[i + TASK], 'body', ARGV[i + BODY], 'meta', ARGV[i + META])
  end
  redis.call('HSET', sources, source, upto)
  position = upto
  count('fed', fed)
end
if pause_of() then return { 'you', position, 0 } end
local waiting = redis.call('XLEN', stream)
local groups = redis.pcall('XINFO', 'GROUPS', stream)
for _, group in ipairs(groups.err and {} or groups) do
  for i = 1, #group, 2 do
    if group[i] == 'pending' then waiting = waiting - group[i + 1] end
  end
end
return { 'you', position, math.max(0, window - waiting) }
