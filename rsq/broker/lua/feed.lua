-- feed: events of a source -> ready, once each: the calls and how far the source was read are one step
-- KEYS  T
-- ARGV  source (its group and its stream, as they stand in keys), feeder, lease_ms (for so long nobody else feeds it; 0 = it
--       feeds no more), window (most calls that wait for a worker), ttl_ms (how long the id of an event is remembered from
--       its end on), after (how far the feeder believes that it was read; '' = never), upto (how far it is read with these;
--       '' = it only asks), then rows, at most 1,000
-- out   who is to feed, how far it was read ('' = never), and of
--       'you': room for so many more now | 'other': ms, after which to ask again | 'moved': 0, the queue lies elsewhere
-- Events are taken only where `after` is how far it was read: a step that is repeated, or comes late, changes nothing. So
-- two who feed at once do no harm; the lease only spares the work.
-- Of events with the same id one is a call: the others are left out once that has ended, and till then wait for its end.
-- rows: Fed
-- include: _common
-- include: _ready
-- include: _calls
local source, feeder, lease_ms, window, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local after, upto, FIRST = ARGV[6], ARGV[7], 8
local stream, sources, lease = stream_of(0), T .. ':sources', T .. ':feeder:' .. source
if pause_of() == 'moved' then return { 'moved', '', 0 } end
local position, holder = redis.call('HGET', sources, source) or '', redis.call('GET', lease)
if holder and holder ~= feeder then return { 'other', position, math.max(0, redis.call('PTTL', lease)) } end
local takes = upto ~= '' and position == after
expect('stream', stream)

-- By row: the one call of its id, a twin of one that has not ended, or of one that has.
local ONE, TWIN, DONE = 1, 2, 3
local fates, ones, left_out = {}, {}, 0
for i = FIRST, takes and #ARGV or 0, WIDTH do
  local id, key = ARGV[i + ID], ARGV[i + KEY]
  if key ~= '' then
    local winner = ones[key] or stands(key)
    if not winner or winner == id then
      expect('hash', CALLS)
      fates[i], ones[key] = ONE, id
    elseif ones[key] or record_of(winner).key == key then
      fates[i] = TWIN
    else
      fates[i], left_out = DONE, left_out + 1
    end
  end
end

if lease_ms > 0 then
  redis.call('SET', lease, feeder, 'PX', lease_ms)
else
  redis.call('DEL', lease)
end
if takes then
  for i = FIRST, #ARGV, WIDTH do
    local id, key, fate = ARGV[i + ID], ARGV[i + KEY], fates[i]
    if fate then
      if fate == ONE then claim(key, id, ttl_ms) end
      if fate ~= DONE then save(id, { key = key, ends = KEPT, ttl_ms = ttl_ms, twin = fate == TWIN and 1 or nil }) end
    end
    if fate ~= DONE then
      local meta = fate == TWIN and ARGV[i + TWIN_META] or ARGV[i + META]
      redis.call('XADD', stream, '*', 'id', id, 'task', ARGV[i + TASK], 'body', ARGV[i + BODY], 'meta', meta)
    end
  end
  redis.call('HSET', sources, source, upto)
  position = upto
  count('fed', (#ARGV - FIRST + 1) / WIDTH - left_out)
  count('duplicate', left_out)
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
