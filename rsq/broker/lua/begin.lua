-- begin: running -> running; may this body start? Asked only for calls with rules or limits of their own
-- KEYS  T
-- ARGV  consumer, entry id, task id, revision (of the newer arguments that the caller has; 0 = as it was sent),
--       version key ('' = none), version, version_ttl_ms,
--       slot ('' = none; name of a concurrency limit), most at once,
--       rate ('' = none; name of a rate limit), interval_us between two starts, burst
-- out   -1 the consumer lost its lease | 'go' | 'newer', revision, task, body, meta (ask again, by its rules)
--       | 'superseded', version that is done, or event with its id | 'wait', ms, 'slot', 'rate' or 'twin'
-- It looks at as many places as the limit has.
-- include: _common
-- include: _ready
-- include: _calls
-- include: _slots
local consumer, entry_id, id, revision = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local versioned, version, slot, most = ARGV[5], tonumber(ARGV[6]), ARGV[8], tonumber(ARGV[9])
local rate, interval_us, burst = ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12])
if not holds_lease(consumer) then return -1 end
local now, record, token = now_ms(), record_of(id), token_of(consumer, entry_id)
local was_known = next(record)
-- One that waits for a slot is called when one is free. It also looks by itself: its turn can get lost with a crash.
local LOOK_MS, LOOKS_PER_S = 5000, 50

if record.newer and (record.revision or 0) ~= revision then
  return { 'newer', record.revision, record.newer[1], record.newer[2], record.newer[3] }
end
if record.twin then
  local winner = stands(record.key)
  if winner and winner ~= id then
    if record_of(winner).key ~= record.key then return { 'superseded', winner } end
    return { 'wait', LOOK_MS, 'twin' }
  end
end
if versioned ~= '' then
  local done = redis.call('GET', version_of(versioned))
  if done and (tonumber(done) or -1) > version then return { 'superseded', done } end
end
expect_record(record)
if slot ~= '' then expect_slot(slot) end

local function slot_is_free()
  local slots = slots_of(slot)
  if redis.call('HEXISTS', slots, id) == 1 or redis.call('HLEN', slots) < most then return true end
  local rows = redis.call('HGETALL', slots)
  for i = 1, #rows, 2 do
    if is_stale(rows[i + 1], now) then redis.call('HDEL', slots, rows[i]) end
  end
  return redis.call('HLEN', slots) < most
end

-- How long until the rate limit allows it, 0 = now. Three clocks in microseconds: when the next one may start; when the
-- next newcomer that is put off is to look again, so that each has a turn of its own and they start in their order; and the
-- same for those that come at their turn and find that one before them was late.
local function rate_wait_ms()
  local name, now_us = T .. ':rate:' .. rate, now * 1000
  -- The same delivery asks again: the reply was lost.
  if record.asked == token then return record.turn and math.max(1, math.ceil((record.turn - now_us) / 1000)) or 0 end
  local had_turn, start, turn, late = record.turn, 0, 0, 0
  local parts = string.gmatch(redis.call('GET', name) or '', '%d+')
  start, turn, late = tonumber(parts() or 0), tonumber(parts() or 0), tonumber(parts() or 0)
  -- Nothing starts later than one interval from now, so this was written before the clock was set back.
  if start > now_us + interval_us then start, turn, late = 0, 0, 0 end
  start = math.max(start, now_us - (burst - 1) * interval_us)
  record.asked, record.turn = token, nil
  if start <= now_us and (had_turn or turn <= now_us) then
    start = start + interval_us
  elseif had_turn then
    late = math.max(late, start)
    record.turn = late
    late = late + interval_us
  else
    turn = math.max(turn, start)
    record.turn = turn
    turn = turn + interval_us
  end
  local forget_ms = math.ceil((math.max(start, turn, late) - now_us + burst * interval_us) / 1000)
  local state = string.format('%.0f %.0f %.0f', start, turn, late)
  redis.call('SET', name, state, 'PX', string.format('%.0f', math.max(1, forget_ms)))
  return record.turn and math.ceil((record.turn - now_us) / 1000) or 0
end

go_on_when_full()
if slot ~= '' and not slot_is_free() then
  local look_ms = math.max(LOOK_MS, redis.call('ZCARD', parked_for(slot)) * 1000 / LOOKS_PER_S)
  return { 'wait', math.floor(look_ms), 'slot' }
end
if rate ~= '' then
  local wait_ms = rate_wait_ms()
  if wait_ms > 0 then
    save(id, record)
    return { 'wait', wait_ms, 'rate' }
  end
end

if record.slot ~= slot then free_slot(id, record, now) end
if slot ~= '' then
  redis.call('HSET', slots_of(slot), id, consumer)
  record.slot = slot
end
leave_line(id, record)
record.line, record.since = nil, nil
if versioned ~= '' then record.versioned, record.version, record.version_ttl_ms = versioned, version, ARGV[7] end
if record.twin then
  claim(record.key, id, record.ttl_ms)
  record.twin = nil
end
if record.key then
  record.begun = 1
  if record.ends == 'started' then drop_marker(id, record) end
end
if was_known or next(record) then save(id, record) end
return { 'go' }
