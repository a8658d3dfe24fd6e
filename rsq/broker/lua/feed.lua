-- feed: events of a source -> ready, once each: the calls and how far the source was read are one step
-- KEYS  T
-- ARGV  source (its group and its stream, as they stand in keys), feeder, lease_ms (for so long nobody else feeds it; 0 = it
--       feeds no more), window (most calls that wait for a worker), ttl_ms (how long the id of an event is remembered from
--       its end on), ruled (1 = its events have rules; 0 = a row ends with the body), line_most (most events of one order that wait; 0 = the source has none), delayed_most (most calls that
--       are delayed, where it has), task, after (how far the feeder believes that it was read; '' = never), upto (how far it is read with these;
--       '' = it only asks), then rows, at most 1,000
-- out   who is to feed, how far it was read ('' = never), and of
--       'you': room for so many more now | 'other': ms, after which to ask again | 'moved': 0, the queue lies elsewhere;
--       then the order that is full, so that its events and all behind them were not taken ('' = none; '*' = too many are
--       delayed)
-- Events are taken only where `after` is how far it was read: a step that is repeated, or comes late, changes nothing. So
-- two who feed at once do no harm; the lease only spares the work.
-- Of events with the same id one is a call: the others are left out once that has ended, and till then wait for its end.
-- Of events with the same order one is ready at a time, and the others are delayed, far away: the end of one calls the next.
-- Where somebody has deleted that one, the next is called by who asks while the queue is idle, at most 100 at once.
-- rows: Fed
-- include: _common
-- include: _ready
-- include: _calls
-- include: _line
local source, feeder, lease_ms, window, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local ruled, line_most, delayed_most = ARGV[6] == '1', tonumber(ARGV[7]), tonumber(ARGV[8])
local task, after, upto = ARGV[9], ARGV[10], ARGV[11]
local FIRST = 12
if not ruled then WIDTH = META end
local stream, sources, lease = stream_of(0), T .. ':sources', T .. ':feeder:' .. source
if pause_of() == 'moved' then return { 'moved', '', 0, '' } end
local position, holder = redis.call('HGET', sources, source) or '', redis.call('GET', lease)
if holder and holder ~= feeder then return { 'other', position, math.max(0, redis.call('PTTL', lease)), '' } end
local takes = upto ~= '' and position == after
expect('stream', stream)

-- By row: the one call of its id, a twin of one that has not ended, or of one that has.
local ONE, TWIN, DONE = 1, 2, 3
local fates, ones, left_out, lengths, full, last = {}, {}, 0, {}, '', #ARGV
for i = FIRST, takes and ruled and #ARGV or 0, WIDTH do
  local id, key, order = ARGV[i + ID], ARGV[i + KEY], ARGV[i + ORDER]
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
  if order ~= '' and fates[i] ~= DONE then
    expect_line(order)
    lengths[order] = lengths[order] or redis.call('ZCARD', line_of(order))
    if lengths[order] >= line_most then
      full, last = order, i - 1
      upto = i > FIRST and ARGV[i - WIDTH + EVENT_ID] or position
      break
    end
    lengths[order] = lengths[order] + 1
  end
end
local now = now_ms()
local lost = line_most > 0 and upto == '' and lost_heads(now) or {}

if lease_ms > 0 then
  redis.call('SET', lease, feeder, 'PX', lease_ms)
else
  redis.call('DEL', lease)
end
for _, each in ipairs(lost) do go_past(each[1], each[2], now) end
if takes and not ruled then
  for i = FIRST, last, WIDTH do
    redis.call('XADD', stream, '*', 'id', ARGV[i + ID], 'task', task, 'body', ARGV[i + BODY], 'meta', '')
  end
elseif takes then
  for i = FIRST, last, WIDTH do
    local id, key, order, fate = ARGV[i + ID], ARGV[i + KEY], ARGV[i + ORDER], fates[i]
    if fate ~= DONE then
      if fate == ONE then claim(key, id, ttl_ms) end
      local record = { order = order ~= '' and order or nil }
      if fate then record.key, record.ends, record.ttl_ms, record.twin = key, KEPT, ttl_ms, fate == TWIN and 1 or nil end
      if next(record) then save(id, record) end
      local meta = fate == TWIN and ARGV[i + TWIN_META] or ARGV[i + META]
      if order ~= '' and stands_in_line(order, id) then
        add_delayed(now, now + NEVER_MS, 0, id, task, ARGV[i + BODY], meta)
      else
        redis.call('XADD', stream, '*', 'id', id, 'task', task, 'body', ARGV[i + BODY], 'meta', meta)
      end
    end
  end
end
if takes then
  redis.call('HSET', sources, source, upto)
  position = upto
  count('fed', (last - FIRST + 1) / WIDTH - left_out)
  count('duplicate', left_out)
end
if pause_of() or full ~= '' then return { 'you', position, 0, full } end
local waiting = redis.call('XLEN', stream)
local groups = redis.pcall('XINFO', 'GROUPS', stream)
for _, group in ipairs(groups.err and {} or groups) do
  for i = 1, #group, 2 do
    if group[i] == 'pending' then waiting = waiting - group[i + 1] end
  end
end
local room = math.max(0, window - waiting)
if line_most > 0 and room > 0 then
  room = math.min(room, delayed_most - redis.call('ZCARD', T .. ':delayed'))
  if room <= 0 then return { 'you', position, 0, '*' } end
end
return { 'you', position, room, '' }
