-- What is known of a call beyond its entry, for calls that have rules: one record each. Needs _common and _ready.
-- Calls without rules cost one EXISTS a batch. A record holds
--   key, ends, ttl_ms     its dedupe key, what ends that (see enqueue), for how long it was to be kept
--   replaceable           1: a duplicate may bring newer arguments
--   newer, revision       {task, body, meta} that one brought while it was in a stream, and how many did
--   begun                 1: it has started once, so newer arguments come too late
--   slot                  the place of a concurrency limit that it has, or that is kept for it
--   line, since           the place that it waits for, and since when
--   turn, asked           its turn under a rate limit (us), and by which delivery it asked
--   versioned, version, version_ttl_ms   the version that it brings
--   taken                 acknowledged early: {consumer that answers for it, token, result if it is lost, its ttl_ms}
local CALLS = T .. ':calls'
local KINDS = {
  key = 'string', ends = 'string', ttl_ms = 'string', replaceable = 'number', newer = 'table', revision = 'number',
  begun = 'number', slot = 'string', line = 'string', since = 'number', turn = 'number', asked = 'string',
  versioned = 'string', version = 'number', version_ttl_ms = 'string', taken = 'table',
}
-- A place is kept so long (ms) for the one that was called: then others may have it, and he keeps his in the line.
local KEEP_MS = 5000

-- Records that this script has read, by task id: whoever changes one changes it for all. With `none_known` there are none.
local records, none_known = {}, false

local function all_texts(values, number)
  for i = 1, number do
    if type(values[i]) ~= 'string' then return false end
  end
  return true
end

-- What cannot be read counts as nothing: it must not stop what happens to others.
local function read_record(packed)
  local readable, record = pcall(cmsgpack.unpack, packed or '\128')
  if not readable or type(record) ~= 'table' then return {} end
  for name, kind in pairs(KINDS) do
    if type(record[name]) ~= kind then record[name] = nil end
  end
  if record.newer and not all_texts(record.newer, 3) then record.newer = nil end
  if record.taken and not all_texts(record.taken, 4) then record.taken = nil end
  return record
end

local function record_of(id)
  if not records[id] then records[id] = none_known and {} or read_record(redis.call('HGET', CALLS, id)) end
  return records[id]
end

local function save(id, record)
  if next(record) then redis.call('HSET', CALLS, id, cmsgpack.pack(record)) else redis.call('HDEL', CALLS, id) end
end

-- The token of an early acknowledgement belongs to one consumer and one delivery: a commit that is repeated late must not
-- spend the token of the call's next attempt.
local function token_of(consumer, entry_id) return consumer .. ' ' .. entry_id end

-- The tokens stay as they are, for outcomes that are on their way.
local function answer_for(former, consumer)
  for _, id in ipairs(redis.call('SMEMBERS', taken_by(former))) do
    local record = record_of(id)
    if record.taken and record.taken[1] == former then
      record.taken[1] = consumer
      save(id, record)
      redis.call('SADD', taken_by(consumer), id)
    end
  end
  redis.call('DEL', taken_by(former))
end

local function marker_of(key) return T .. ':dedupe:key:' .. key end

local function version_of(name) return T .. ':version:' .. name end

local function slots_of(slot) return T .. ':slots:' .. slot end

local function parked_for(slot) return T .. ':parked:' .. slot end

-- Asked before the first write by all that ends calls, puts them off or gives them up.
local function expect_record(record)
  if record.key then expect('string', marker_of(record.key)) end
  if record.versioned then expect('string', version_of(record.versioned)) end
  if record.taken then expect('set', taken_by(record.taken[1])) end
  for _, slot in ipairs({ record.slot or record.line, record.line }) do
    expect('hash', slots_of(slot))
    expect('zset', parked_for(slot))
    expect_delayed(0)
  end
end

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

-- From now on a call with this key is a duplicate of this one.
local function mark(key, id, ttl_ms, ends, replace, record)
  redis.call('SET', marker_of(key), id, 'PX', ttl_ms)
  if ends ~= '' or replace then
    record.key, record.ends, record.ttl_ms, record.replaceable = key, ends, ttl_ms, replace and 1 or nil
    save(id, record)
  end
end

-- Who has this key, or nil. One that was revoked before it began will never run; unless its key has its time anyway.
local function stands(key)
  local winner = redis.call('GET', marker_of(key))
  if not winner or not revoked_until(winner) then return winner or nil end
  local record = record_of(winner)
  if record.key == key and record.ends ~= '' and not record.begun then return nil end
  return winner
end

-- A dedupe marker that lives only until the call begins or ends; a later call with the key may have set it anew.
local function drop_marker(id, record)
  local marker = marker_of(record.key)
  if redis.call('GET', marker) == id then redis.call('DEL', marker) end
end
