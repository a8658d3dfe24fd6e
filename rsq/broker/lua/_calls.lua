-- What is known of a call beyond its entry, for calls that have rules: one record each. Needs _common and _ready.
-- Calls without rules cost one EXISTS a batch. A record holds
--   key, ends, ttl_ms     its dedupe key, what ends that (see enqueue; KEPT: of an event), for how long it was to be kept
--   twin                  1: another event with this key had not ended when it came, so it asks before it starts
--   replaceable           1: a duplicate may bring newer arguments
--   newer, revision       {task, body, meta} that one brought while it was in a stream, and how many did
--   begun                 1: it has started once, so newer arguments come too late
--   slot                  the place of a concurrency limit that it has, or that is kept for it
--   line, since           the place that it waits for, and since when
--   turn, asked           its turn under a rate limit (us), and by which delivery it asked
--   versioned, version, version_ttl_ms   the version that it brings
--   taken                 acknowledged early: {consumer that answers for it, token, result if it is lost, its ttl_ms}
--   flow, node            and its place in a flow, which hears of its end
--   order                 the line of events that it is in, see feed
--   output                what its runs have emitted so far, see _emitted
--   adds                  {token of the run, names of what that adds to flows: kept until it succeeds, see prepare}
local CALLS = T .. ':calls'
-- The marker is kept from the end of the call on, but dropped where that never ran to an end: somebody else may.
local KEPT, DROPPED = 'kept', { revoked = 1, purged = 1, expired = 1 }
-- Records that this script has read, by task id: whoever changes one changes it for all. With `none_known` there are none.
local records, none_known = {}, false

local function all_texts(values, number)
  for i = 1, number do
    if type(values[i]) ~= 'string' then return false end
  end
  return true
end

local function is_output(output)
  for _, name in ipairs({ 'run', 'number', 'n', 'base', 'length', 'ttl_ms' }) do
    if type(output[name]) ~= 'number' then return false end
  end
  return type(output.token) == 'string'
end

-- What cannot be read counts as nothing: it must not stop what happens to others.
local function read_record(packed)
  if not packed then return {} end
  local readable, record = pcall(cmsgpack.unpack, packed)
  if not readable or type(record) ~= 'table' then return {} end
  local kinds = {
    key = 'string', ends = 'string', ttl_ms = 'string', replaceable = 'number', twin = 'number', newer = 'table', revision = 'number',
    begun = 'number', slot = 'string', line = 'string', since = 'number', turn = 'number', asked = 'string',
    versioned = 'string', version = 'number', version_ttl_ms = 'string', taken = 'table', flow = 'string', node = 'number', order = 'string',
    output = 'table', adds = 'table',
  }
  for name, kind in pairs(kinds) do
    if type(record[name]) ~= kind then record[name] = nil end
  end
  if record.newer and not all_texts(record.newer, 3) then record.newer = nil end
  if record.taken and not all_texts(record.taken, 4) then record.taken = nil end
  if record.output and not is_output(record.output) then record.output = nil end
  if record.adds and not all_texts(record.adds, #record.adds) then record.adds = nil end
  return record
end

-- Where that is what a run adds to a flow.
local function added_by(name) return string.match(T, '^{[^}]*}') .. '::added:' .. name end

-- It comes to nothing, but for what a flow has taken in.
local function drop_added(record, taken_in)
  for i = 2, #record.adds do
    if not (taken_in and taken_in[record.adds[i]]) then redis.call('UNLINK', added_by(record.adds[i])) end
  end
  record.adds = nil
end

local function output_of(id) return T .. ':output:' .. id end

-- The id of an entry there: the run, and the place among the values of all runs.
local function entry_of(run, n) return string.format('%.0f-%.0f', run, n) end

local function record_of(id, queue)
  if queue and queue ~= T then return read_record(redis.call('HGET', queue .. ':calls', id)) end
  if not records[id] then records[id] = none_known and {} or read_record(redis.call('HGET', CALLS, id)) end
  return records[id]
end

local function save(id, record, queue)
  local calls = queue and queue .. ':calls' or CALLS
  if next(record) then redis.call('HSET', calls, id, cmsgpack.pack(record)) else redis.call('HDEL', calls, id) end
end

-- The token of an early acknowledgement belongs to one consumer and one delivery: a commit that is repeated late must not
-- spend the token of the call's next attempt.
local function token_of(consumer, entry_id) return consumer .. ' ' .. entry_id end
-- Here is the token of a member of a flow that is taken for lost: who holds it may bring the outcome after all.
local LATE = T .. ':late:'

-- Events of which one runs at a time, in their order: the first is ready or runs, the others are delayed for NEVER_MS.
local NEVER_MS = 3153600000000

local function line_of(order) return T .. ':line:' .. order end

local function marker_of(key, queue) return (queue or T) .. ':dedupe:key:' .. key end

-- From now on a call with this key is a duplicate of this one.
local function mark(key, id, ttl_ms, ends, replace, record, queue)
  redis.call('SET', marker_of(key, queue), id, 'PX', ttl_ms)
  if ends ~= '' or replace then
    record.key, record.ends, record.ttl_ms, record.replaceable = key, ends, ttl_ms, replace and 1 or nil
    save(id, record, queue)
  end
end

-- The key of an event is its call's while that has not ended, and so long it is kept for some days more (ms).
local function claim(key, id, ttl_ms)
  redis.call('SET', marker_of(key), id, 'PX', string.format('%.0f', tonumber(ttl_ms) + 604800000))
end

-- Who has this key, or nil. One that was revoked before it began will never run; unless its key has its time anyway.
local function stands(key, queue)
  local winner = redis.call('GET', marker_of(key, queue))
  if not winner or not revoked_until(winner, queue) then return winner or nil end
  local record = record_of(winner, queue)
  if record.key == key and record.ends ~= '' and not record.begun then return nil end
  return winner
end

-- A dedupe marker that lives only until the call begins or ends; a later call with the key may have set it anew.
-- way  in which the call has ended, where it has
local function drop_marker(id, record, way)
  local marker = marker_of(record.key)
  if redis.call('GET', marker) ~= id then return end
  if record.ends == KEPT and not DROPPED[way] then
    redis.call('PEXPIRE', marker, record.ttl_ms)
  else
    redis.call('DEL', marker)
  end
end
