-- begin: running -> running; may this body start? Asked only for calls with rules or limits of their own
-- KEYS  T
-- ARGV  consumer, task id, version key ('' = none), version, version_ttl_ms,
--       slot ('' = none; name of a concurrency limit), most at once,
--       rate ('' = none; name of a rate limit), interval_us between two starts, burst, reserved (1 = it was put off by this
--       limit before)
-- out   -1 the consumer lost its lease | 'go', body ('' = as it was sent)
--       | 'superseded', version that is done | 'wait', ms, 'slot' or 'rate'
-- include: _common
-- include: _ready
-- include: _held
local consumer, id, versioned, version = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local slot, most, rate = ARGV[6], tonumber(ARGV[7]), ARGV[8]
if not holds_lease(consumer) then return -1 end
local now, held = now_ms(), held_by(id)
local holds_something = next(held)
go_on_when_full()
-- One that waits for a slot is called when one is free. It also looks by itself: its turn can get lost with a crash.
local LOOK_MS, LOOKS_PER_S = 5000, 50

if versioned ~= '' then
  local done = redis.call('GET', T .. ':version:' .. versioned)
  if done and tonumber(done) > version then return { 'superseded', done } end
end

local function slot_is_free()
  local slots = slots_of(slot)
  if redis.call('HEXISTS', slots, id) == 1 or redis.call('HLEN', slots) < most then return true end
  -- What a crashed worker held is free with its lease.
  local rows = redis.call('HGETALL', slots)
  for i = 1, #rows, 2 do
    if not holds_lease(rows[i + 1]) then redis.call('HDEL', slots, rows[i]) end
  end
  return redis.call('HLEN', slots) < most
end

-- How long until the rate limit allows it, 0 = now. Three clocks in microseconds: when the next one may start; when the
-- next newcomer that is put off is to look again, so that each has a turn of its own and they start in their order; and the
-- same for those that come at their turn and find that one before them was late.
local function rate_wait_ms()
  local name, interval, now_us = T .. ':rate:' .. rate, tonumber(ARGV[9]), now * 1000
  local reserved, start, turn, late = ARGV[11] == '1', 0, 0, 0
  local state = redis.call('GET', name)
  if state then
    local parts = string.gmatch(state, '%d+')
    start, turn, late = tonumber(parts()), tonumber(parts()), tonumber(parts())
  end
  start = math.max(start, now_us - (tonumber(ARGV[10]) - 1) * interval)
  local wait_us = 0
  if start <= now_us and (reserved or turn <= now_us) then
    start = start + interval
  elseif reserved then
    late = math.max(late, start)
    wait_us = late - now_us
    late = late + interval
  else
    turn = math.max(turn, start)
    wait_us = turn - now_us
    turn = turn + interval
  end
  local forget_ms = math.ceil((math.max(start, turn, late) - now_us + tonumber(ARGV[10]) * interval) / 1000)
  redis.call('SET', name, string.format('%.0f %.0f %.0f', start, turn, late), 'PX', math.max(1, forget_ms))
  return math.ceil(wait_us / 1000)
end

if slot ~= '' and not slot_is_free() then
  local look_ms = math.max(LOOK_MS, redis.call('ZCARD', parked_for(slot)) * 1000 / LOOKS_PER_S)
  return { 'wait', math.floor(look_ms), 'slot' }
end
if rate ~= '' then
  local wait_ms = rate_wait_ms()
  if wait_ms > 0 then return { 'wait', wait_ms, 'rate' } end
end

if slot ~= '' then
  redis.call('HSET', slots_of(slot), id, consumer)
  held.slot = slot
end
if held.parked then
  unpark(id, held.parked)
  held.parked = nil
end
if versioned ~= '' then held.versioned, held.version, held.ttl_ms = versioned, version, ARGV[5] end
if held.key then
  held.begun = 1
  if held.ends == 'started' then drop_marker(id, held.key) end
end
if holds_something or next(held) then keep(id, held) end
return { 'go', redis.call('HGET', LATEST, id) or '' }
