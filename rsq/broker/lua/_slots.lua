-- Places of concurrency limits, and the lines of those that wait for one. Needs _common, _ready and _calls.
-- A place is kept so long (ms) for the one that was called: then others may have it, and he keeps his in the line.
local KEEP_MS = 5000

local function version_of(name) return T .. ':version:' .. name end

local function slots_of(slot) return T .. ':slots:' .. slot end

local function parked_for(slot) return T .. ':parked:' .. slot end

-- The first of those that wait gets the place, for as long as it is kept; delayed like any other put off, it is due now.
local function call_next(slot, now)
  for _ = 1, PAGE do
    local id = redis.call('ZPOPMIN', parked_for(slot))[1]
    if not id then return end
    local record = record_of(id)
    if record.line == slot then
      record.slot = slot
      save(id, record)
      redis.call('HSET', slots_of(slot), id, '@' .. string.format('%.0f', now + KEEP_MS))
      if redis.call('ZADD', T .. ':delayed', 'XX', 'CH', now, id) == 1 then wake() end
      return
    end
  end
end

-- A place is free again when the lease is over of the worker that had it, and when nobody came for whom it was kept.
local function is_stale(holder, now)
  local kept_until = string.match(holder, '^@(%d+)$')
  if kept_until then return tonumber(kept_until) < now end
  return not holds_lease(holder)
end

local function free_slot(id, record, now)
  local slot = record.slot
  record.slot = nil
  if slot and redis.call('HDEL', slots_of(slot), id) == 1 then call_next(slot, now) end
end

local function leave_line(id, record)
  if record.line then redis.call('ZREM', parked_for(record.line), id) end
end

-- A call of an event has ended: the next one of its line is due now, if this was the first.
local function leave_order(id, record, now)
  local line = line_of(record.order)
  local first = redis.call('ZRANGE', line, 0, 0)[1] == id
  redis.call('ZREM', line, id)
  local following = first and redis.call('ZRANGE', line, 0, 0)[1]
  if following and redis.call('ZADD', T .. ':delayed', 'XX', 'CH', now, following) == 1 then wake() end
end

-- A call that is delayed waits for a place from now on, or again: then where it stood. Where one became free meanwhile, or
-- is kept for it, its turn is now. `behind` others come before it in this millisecond.
local function park(id, record, slot, most, now, behind)
  if record.line ~= slot then
    leave_line(id, record)
    record.line, record.since = slot, now + behind / 1000
  end
  if record.slot ~= slot then free_slot(id, record, now) end
  redis.call('ZADD', parked_for(slot), string.format('%.3f', record.since or now), id)
  save(id, record)
  if redis.call('HLEN', slots_of(slot)) < most then
    call_next(slot, now)
  elseif redis.call('HEXISTS', slots_of(slot), id) == 1 then
    redis.call('ZREM', parked_for(slot), id)
    if redis.call('ZADD', T .. ':delayed', 'XX', 'CH', now, id) == 1 then wake() end
  end
end

-- A place of this limit may be given up, and the next in the line be called.
local function expect_slot(slot)
  local parked = parked_for(slot)
  expect('hash', slots_of(slot))
  if not expected[parked] and redis.call('ZCARD', parked) > 0 then expect_delayed(0) end
  expected[parked] = true
end

-- Asked before the first write by all that ends calls, puts them off or gives them up.
local function expect_record(record)
  if record.key then expect('string', marker_of(record.key)) end
  if record.versioned then expect('string', version_of(record.versioned)) end
  if record.taken then expect('set', taken_by(record.taken[1])) end
  if record.slot then expect_slot(record.slot) end
  if record.line then expect_slot(record.line) end
  if record.order then
    expect('zset', line_of(record.order))
    expect_delayed(0)
  end
end
