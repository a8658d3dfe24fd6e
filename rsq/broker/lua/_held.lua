-- What a call holds besides its entry until it ends: a dedupe marker, a slot of a concurrency limit, replaced arguments,
-- the version that it brings. Needs _common and _ready. Calls that hold nothing cost one EXISTS a batch.
local HELD, LATEST = T .. ':held', T .. ':latest'

local function held_by(id)
  local packed = redis.call('HGET', HELD, id)
  return packed and cmsgpack.unpack(packed) or {}
end

local function keep(id, held) redis.call('HSET', HELD, id, cmsgpack.pack(held)) end

local function slots_of(slot) return T .. ':slots:' .. slot end

local function parked_for(slot) return T .. ':parked:' .. slot end

-- The first of those that wait for a slot is due now; it is delayed meanwhile, like any other put off.
local function call_next(slot, now)
  while true do
    local id = redis.call('ZPOPMIN', parked_for(slot))[1]
    if not id then return end
    if redis.call('ZSCORE', T .. ':delayed', id) then
      redis.call('ZADD', T .. ':delayed', 'XX', now, id)
      wake()
      return
    end
  end
end

-- It waits for a slot from now on; where one became free meanwhile, its turn is now.
local function park(id, slot, most, now)
  local held = held_by(id)
  held.parked = slot
  keep(id, held)
  redis.call('ZADD', parked_for(slot), 'NX', now, id)
  if redis.call('HLEN', slots_of(slot)) < most then call_next(slot, now) end
end

-- It waits no more. False where it had been called already.
local function unpark(id, slot) return redis.call('ZREM', parked_for(slot), id) == 1 end

local function free_slot(id, slot, now)
  if slot and redis.call('HDEL', slots_of(slot), id) == 1 then call_next(slot, now) end
end

-- From now on a call with this key is a duplicate of this one.
local function mark(key, id, ttl_ms, ends, replace)
  redis.call('SET', T .. ':dedupe:key:' .. key, id, 'PX', ttl_ms)
  if ends ~= '' or replace then keep(id, { key = key, ends = ends }) end
end

-- A dedupe marker that lives only until the call begins or ends; a later call with the key may have set it anew.
local function drop_marker(id, key)
  local marker = T .. ':dedupe:key:' .. key
  if redis.call('GET', marker) == id then redis.call('DEL', marker) end
end

-- These calls are put off: they hold their place among duplicates, but no slot.
local function let_go(ids, now)
  if #ids == 0 or redis.call('EXISTS', HELD) == 0 then return end
  for _, id in ipairs(ids) do
    local held = held_by(id)
    if held.slot or held.taken then
      free_slot(id, held.slot, now)
      held.slot, held.taken = nil, nil
      keep(id, held)
    end
  end
end

-- These calls have ended. With `succeeded` the versions that they brought are the newest from now on.
local function give_up(ids, now, succeeded)
  if #ids == 0 or redis.call('EXISTS', HELD, LATEST) == 0 then return end
  for _, id in ipairs(ids) do
    local held = held_by(id)
    free_slot(id, held.slot, now)
    -- A turn that it was given and never took goes to the next.
    if held.parked and not unpark(id, held.parked) then call_next(held.parked, now) end
    -- One that was to go with the start goes now at the latest: not every call that ends has started.
    if held.ends and held.ends ~= '' then drop_marker(id, held.key) end
    if succeeded and held.versioned then
      local name = T .. ':version:' .. held.versioned
      local newest = redis.call('GET', name)
      if not newest or tonumber(newest) < held.version then
        redis.call('SET', name, string.format('%.0f', held.version), 'PX', held.ttl_ms)
      end
    end
    redis.call('HDEL', HELD, id)
    redis.call('HDEL', LATEST, id)
  end
end
