-- enqueue: -> ready or delayed, for all but the plainest calls (those are one XADD)
-- KEYS  T
-- ARGV  id, task, body, meta, priority,
--       delay_ms ('' = none), eta_ms ('' = none; since the epoch),
--       max_length (0 = no bound), unique (1 = this id runs once), dedupe_key ('' = none), marker_ttl_ms,
--       window_ms (for so long its producer may ask whether a call arrived),
--       ends (what ends the marker of the key: '' = its ttl, 'done' or 'started' = the call),
--       replace (1 = a duplicate brings newer arguments for the call that waits), debounce_ms ('' = none: that call
--       starts so long after the last duplicate), repeated (1 = an earlier try did not arrive)
-- out   'accepted', id | 'duplicate' or 'replaced', id that won | 'full', messages held | 'paused', id (the queue refuses calls)
--       | 'moved', id (it lies in another partition)
-- include: _common
-- include: _ready
-- include: _admit
-- include: _calls
local id, task, body, meta, priority = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local delay_ms, eta_ms, max_length = ARGV[6], ARGV[7], tonumber(ARGV[8])
local unique, dedupe_key, marker_ttl_ms, asked_ms = ARGV[9] == '1', ARGV[10], ARGV[11], tonumber(ARGV[12])
local ends, replace, debounce_ms, repeated = ARGV[13], ARGV[14] == '1', ARGV[15], ARGV[16] == '1'
local id_marker = T .. ':dedupe:id:' .. id
local now = now_ms()

-- Gives the call that waits the arguments of this one, with all that came with them; its id, its priority and the marker
-- stay. False where it has begun, or where they cannot be replaced.
local function brings_newer(winner)
  local record = record_of(winner)
  if record.key ~= dedupe_key or not record.replaceable or record.begun then return false end
  local packed = redis.call('HGET', T .. ':messages', winner)
  local readable, message = pcall(cmsgpack.unpack, packed or '\128')
  if not packed then
    record.newer, record.revision = { task, body, meta }, (record.revision or 0) + 1
    save(winner, record)
  elseif not readable or type(message) ~= 'table' then
    return false
  else
    expect_delayed(0)
    redis.call('HSET', T .. ':messages', winner, cmsgpack.pack({ message[1], task, body, meta }))
    -- What replaced them while it was in the stream, before it was put off, is older.
    if record.newer then
      record.newer, record.revision = nil, nil
      save(winner, record)
    end
    if debounce_ms ~= '' then redis.call('ZADD', T .. ':delayed', 'XX', now + tonumber(debounce_ms), winner) end
  end
  return true
end

if dedupe_key ~= '' then
  local winner = stands(dedupe_key)
  if winner then return { replace and brings_newer(winner) and 'replaced' or 'duplicate', winner } end
end
-- What was accepted and waits is not lost to another call under its id, though its marker may be gone.
if unique and redis.call('EXISTS', id_marker) == 1 or redis.call('HEXISTS', T .. ':messages', id) == 1 then
  return { 'duplicate', id }
end
local pause = pause_of()
if pause == 'moved' then return { 'moved', id } end
if pause == 'refuse' then return { 'paused', id } end
local held = full(max_length)
if held then return { 'full', held } end
local due = eta_ms ~= '' and tonumber(eta_ms) or (delay_ms ~= '' and now + tonumber(delay_ms)) or now
-- The marker of an earlier call with this id is gone; its result is not an answer to this one, nor was this one revoked.
local was_revoked = unique and not repeated and revoked_until(id)
if ends ~= '' or replace then expect('hash', CALLS) end
-- The first write tells by itself whether its key holds something else. So that is asked where others follow.
local marks = unique or dedupe_key ~= ''
if due > now then
  if marks or due - now < LONGEST_BLOCK_MS then expect_delayed(priority) end
elseif marks or priority ~= '0' then
  expect_ready(priority)
end

if asked_ms > REPEAT_WINDOW_MS then
  local longest_ms = math.min(LONGEST_REPEAT_WINDOW_MS, math.max(asked_ms, repeat_window()))
  redis.call('SET', T .. ':window', string.format('%.0f', longest_ms), 'PX', string.format('%.0f', 2 * longest_ms))
end
if dedupe_key ~= '' then mark(dedupe_key, id, marker_ttl_ms, ends, replace, {}) end
if unique then
  local kept_ms = math.max(tonumber(marker_ttl_ms), due - now)
  redis.call('SET', id_marker, id, 'PX', string.format('%.0f', kept_ms))
  redis.call('DEL', T .. ':result:' .. id, output_of(id))
  if was_revoked then redis.call('ZREM', REVOKED, id) end
end
place(now, due, priority, id, task, body, meta)
return { 'accepted', id }
